"""A graph without what only people read: for objective size, where every byte of the file counts.

Stands behind the last pass of a recipe, before saving. Node names, documentation, metadata and the declared shapes of
interior tensors go, and interior tensors get names of one to three letters. No runtime needs any of it: shapes are
inferred at load. What a caller sees stays as it was: inputs, outputs and the weights that a caller may override.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import onnx_ir as ir

from edgeopt.graph import edit

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def stripped(model: ir.Model) -> ir.Model:
    """A copy of ``model`` that computes the same and takes fewer bytes. Idempotent; the same model gives the same names."""
    own = edit.copy(model)
    own.doc_string = None
    own.metadata_props.clear()
    for graph in own.graphs():
        _forget(graph)
    _shorten(own)
    return own


def _shorten(model: ir.Model) -> None:
    known = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    interior = [value for graph in model.graphs() for value in _named(graph) if value.name not in known]
    long = edit.fresh_names(model)
    for value in interior:  # out of the way first, since the new names may be old ones of others
        value.name = long.fresh(str(value.name))
    short = (word for word in map(_word, count()) if word not in known)
    for value, word in zip(interior, short, strict=False):
        value.name = word


def _forget(graph: ir.Graph) -> None:
    graph.doc_string = None
    graph.metadata_props.clear()
    for node in graph:
        node.name, node.doc_string = None, None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type, value.shape, value.doc_string = None, None, None
    for value in graph.initializers.values():
        value.metadata_props.clear()


def _named(graph: ir.Graph) -> Iterator[ir.Value]:
    """Constants, inputs and what nodes make, in the graph's order; a missing optional output stays nameless."""
    constants = [value for value in graph.initializers.values() if not value.is_graph_input()]
    made = [value for node in graph for value in node.outputs if value.name]
    return iter([*constants, *graph.inputs, *made])


def _word(index: int) -> str:
    """0, 1, 2 ... as a, b ... z, aa, ab ...; source: bijective base 26."""
    word = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, len(_LETTERS))
        word = _LETTERS[letter] + word
    return word
