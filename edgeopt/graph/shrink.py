"""A smaller graph out of a set of removed units; and the same graph with those units silenced, which computes the same.

Stands under ``passes.prune_channels``. In comes a model, what ``groups`` found in it and which units of which family go; out goes a copy whose constants are cut and whose
counting numbers (a Reshape's target, the sizes of a Split, the groups of a Conv, a cell's hidden size) are rewritten. :func:`zeroed` keeps all
shapes and clears the columns that read the units: what the two compute is equal up to rounding, and the tests hold them against each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, lengths, shapes, tensors
from edgeopt.graph.groups import ChannelGroups, Rewrite
from edgeopt.graph.naming import Names

_Places = dict[str, dict[int, set[int]]]
"""Constant to axis to indices."""
_EQUAL_BY_CHANCE = 8192
"""Elements: as long as a bias, a scale or a depthwise kernel gets."""
_Cut = Callable[[NDArray[Any], int, list[int]], NDArray[Any]]


def shrink(model: ir.Model, groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> ir.Model:
    """A copy of ``model`` without the units ``removed``: family name to unit numbers.

    Raises :class:`~edgeopt.errors.PassFailed` where a family is unknown, would lose all its units, or where a tensor would become empty.
    """
    _check(groups, removed)
    smaller = edit.copy(model)
    _apply(smaller, _places(groups, removed, roles=("producer", "consumer", "follower")), _delete)
    gone = _gone(groups, removed)
    nodes = {str(node.outputs[0].name): node for node in edit.nodes(smaller) if node.outputs}
    names, opset = Names(smaller), smaller.opset_imports.get("", 1)
    for rewrite in groups.rewrites:
        if any(number in gone for part in rewrite.parts for number in part):
            lengths.rewrite(nodes[rewrite.node], rewrite, _left(rewrite, gone), names=names, opset=opset)
    edit.prune(smaller)
    _refresh_shapes(smaller)
    edit.restore_interface(smaller, model)
    return smaller


def unshared(model: ir.Model) -> ir.Model:
    """A copy of ``model`` in which every small float constant has one reader.

    Exporters and clean-ups store equal biases once, and a bias that two layers share ties their channels together for no reason. Weights that
    are too large to be equal by chance stay shared.
    """
    own = edit.copy(model)
    names = Names(own)
    for value in list(own.graph.initializers.values()):
        tensor = tensors.constant(value)
        if tensor is None or tensor.size > _EQUAL_BY_CHANCE or not tensor.dtype.is_floating_point():
            continue
        for use in [use for use in list(value.uses())[1:] if use.node.graph is own.graph]:
            copied = edit.add_initializer(own.graph, names.fresh(str(value.name)), np.array(tensor.numpy()))
            use.node.replace_input_with(use.idx, copied)
    return own


def zeroed(model: ir.Model, groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> ir.Model:
    """A copy of ``model``, all shapes kept, in which nothing reads the units ``removed`` any more."""
    _check(groups, removed)
    silenced = edit.copy(model)
    _apply(silenced, _places(groups, removed, roles=("consumer",)), _clear)
    return silenced


def _check(groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> None:
    families = {family.name: family for family in groups.families}
    for name, units in removed.items():
        if name not in families:
            raise PassFailed(
                f"there is no family called {name!r} among {len(families)}",
                hint="Name a family that the dependency analysis found in this very model.",
            )
        count = families[name].units
        outside = [unit for unit in units if not 0 <= unit < count]
        if outside or len(set(units)) >= count:
            what = f"unit {outside[0]}" if outside else "all units"
            raise PassFailed(
                f"{what} of family {name!r} cannot be removed: it has {count}",
                hint="Remove fewer units than the family has.",
            )


def _places(groups: ChannelGroups, removed: Mapping[str, Collection[int]], *, roles: Collection[str]) -> _Places:
    places: _Places = defaultdict(lambda: defaultdict(set))
    for family in groups.families:
        for slot in family.slots:
            if slot.role in roles:
                for unit in removed.get(family.name, ()):
                    places[slot.constant][slot.axis].update(slot.indices[unit])
    return places


def _gone(groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> set[int]:
    """The removed units, as numbers over all families laid end to end."""
    gone: set[int] = set()
    start = 0
    for family in groups.families:
        gone.update(start + unit for unit in removed.get(family.name, ()))
        start += family.units
    return gone


def _left(rewrite: Rewrite, gone: set[int]) -> list[int]:
    """How many indices of each part stay."""
    left = [sum(number not in gone for number in part) for part in rewrite.parts]
    needed = left[1:] if rewrite.what == "slice" else left
    if not all(needed):
        raise PassFailed(
            f"a part of what node {rewrite.node!r} works on would become empty",
            hint="Remove fewer units.",
        )
    return left


def _delete(data: NDArray[Any], axis: int, indices: list[int]) -> NDArray[Any]:
    return np.delete(data, indices, axis=axis)


def _clear(data: NDArray[Any], axis: int, indices: list[int]) -> NDArray[Any]:
    cleared = np.array(data)
    cleared[(slice(None),) * axis + (indices,)] = 0
    return cleared


def _apply(model: ir.Model, places: _Places, change: _Cut) -> None:
    values = {str(value.name): value for graph in model.graphs() for value in graph.initializers.values()}
    for node in edit.nodes(model):
        if node.op_type == "Constant":
            values[str(node.outputs[0].name)] = node.outputs[0]
    for name, axes in places.items():
        value = values[name]
        tensor = tensors.constant(value)
        if tensor is None:
            raise PassFailed(f"{name!r} is no constant", hint="Analyse the model that is to be cut.")
        data = np.asarray(tensor.numpy())
        for axis, indices in axes.items():
            data = change(data, axis, sorted(indices))
        edit.set_constant(value, data, dtype=tensor.dtype)


def _refresh_shapes(model: ir.Model) -> None:
    """Forget what was known of values inside, since some of it is wrong by now, and infer it again."""
    known = shapes.symbols(model)
    outputs = {value for graph in model.graphs() for value in graph.outputs}
    for node in edit.nodes(model):
        if node.op_type != "Constant":
            for value in node.outputs:
                if value not in outputs:
                    value.shape = None
    shapes.infer(model)
    shapes.forget_invented(model, known)
