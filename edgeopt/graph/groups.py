"""Which channels of which constants must go together: the dependency analysis under structured pruning.

Stands under ``passes.prune_channels``; looks, never edits. In comes a model and the shapes of its values (``calibrate.shapes``), out go *families* of units: channels, heads, neurons
or hidden units that live in the same constants on the same axes, so that any of them may go. Everything else comes back as frozen, with the reason.
The analysis itself is ``links``; this module only reads its result off.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph import links
from edgeopt.graph.atoms import Ids
from edgeopt.graph.links_ledger import Kind, Ledger, Role, Shapes, What

__all__ = ["ChannelGroups", "Family", "Frozen", "Rewrite", "Shapes", "Slot", "find"]

_Place = tuple[str, int]
"""A constant's name and one of its axes."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a family's units lie in one constant.

    ``role``: rows of a weight that make the unit, columns that read it, or a bias, scale or mean that follows.
    """

    constant: str
    axis: int
    indices: tuple[tuple[int, ...], ...]
    """For each unit, its indices on that axis."""
    role: Role
    operator: str = ""
    """Types of the operators that work with the constant, such as ``Conv`` or, where channels are in groups, ``Conv in groups``."""


@dataclass(frozen=True, slots=True)
class Family:
    """Units of which any may go. ``name`` is the first producing constant's, which is stable: recipes speak of it."""

    name: str
    kind: Kind
    units: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """What stays, under the name that its family would have had, and one sentence that says why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A number in the graph that shrinks with the axes it counts.

    ``node`` is the name of the node's first output; the number is ``entry`` of ``length`` in input ``position``; ``parts`` holds for each counted index the number of its unit (families
    laid end to end), or -1 where it is of no family.
    """

    node: str
    what: What
    position: int
    entry: int
    length: int
    parts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """What can be cut out of one model, in graph order, and what cannot."""

    families: tuple[Family, ...]
    frozen: tuple[Frozen, ...]
    rewrites: tuple[Rewrite, ...] = ()


def find(model: ir.Model, shapes: Shapes) -> ChannelGroups:
    """The families of ``model``, bodies of control flow included.

    ``shapes`` gives the lengths of its values as seen when it ran; a value that is missing there has its declared shape.
    """
    ledger = links.walk(model, shapes)
    units = _units(ledger)
    alike: dict[object, list[int]] = defaultdict(list)
    parts = _parts(ledger)
    for root, places in units.items():
        alike[*sorted((place, len(indices)) for place, indices in places.items()), *parts.get(root, ())].append(root)
    kinds = _kinds(ledger)
    found: list[tuple[Family, list[int]]] = []
    taken: set[str] = set()
    frozen = _frozen(ledger)
    for roots in alike.values():
        slots = _slots(ledger, units, roots)
        producers = [slot.constant for slot in slots if slot.role == "producer"]
        if not producers or all(slot.role != "consumer" for slot in slots):
            verb = "reads it, so that nothing can take its part out" if producers else "makes it"
            frozen.append(Frozen(producers[0] if producers else slots[0].constant, f"no layer with weights {verb}"))
        elif len(roots) < 2:
            frozen.append(Frozen(producers[0], "it is one unit, and one must stay"))
        else:
            name = _unused(producers[0], slots, taken)
            found.append((Family(name, kinds.get(roots[0], "neurons"), len(roots), slots), roots))
    numbers = {root: number for number, root in enumerate(root for _, roots in found for root in roots)}
    return ChannelGroups(tuple(family for family, _ in found), tuple(frozen), _rewrites(ledger, numbers))


def _units(ledger: Ledger) -> dict[int, dict[_Place, list[int]]]:
    """Root of each set that may go, to where it lies, in the order in which the graph reads the constants."""
    units: dict[int, dict[_Place, list[int]]] = {}
    for value, layout in ledger.constants.items():
        for axis, ids in enumerate(layout):
            if not ledger.atoms.is_live(ids) or ids is None:
                continue
            for index, atom in enumerate(ids.tolist()):
                if ledger.atoms.reason(atom) is None:
                    places = units.setdefault(ledger.atoms.root(atom), {})
                    places.setdefault((str(value.name), axis), []).append(index)
    return units


def _parts(ledger: Ledger) -> dict[int, list[tuple[int, int]]]:
    """Which parts of Splits and Slices each unit is in: units of one family share them, so that no part loses all it has."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, note in enumerate(ledger.pending):
        for part, ids in enumerate(note.parts):
            # what a slice leaves out in front may vanish
            if note.what == "split" or (note.what == "slice" and part):
                for root in {ledger.atoms.root(atom) for atom in ids.tolist()}:
                    found[root].append((number, part))
    return found


def _slots(ledger: Ledger, units: dict[int, dict[_Place, list[int]]], roots: list[int]) -> tuple[Slot, ...]:
    layouts = {str(value.name): layout for value, layout in ledger.constants.items()}
    values = {str(value.name): value for value in ledger.constants}
    slots = []
    for name, axis in units[roots[0]]:
        ids = layouts[name][axis]
        indices = tuple(tuple(units[root][name, axis]) for root in roots)
        first = int(ids[indices[0][0]]) if ids is not None else 0
        operator = "+".join(sorted(_operators(values[name], ledger)))
        slots.append(Slot(name, axis, indices, ledger.roles.get(first, "follower"), operator))
    return tuple(slots)


def _operators(value: ir.Value, ledger: Ledger) -> set[str]:
    """What works with a constant, also behind nodes that only lay it out anew."""
    found = set()
    for node in value.consumers():
        if all(made in ledger.derived for made in node.outputs):
            found |= set().union(*(_operators(made, ledger) for made in node.outputs))
        else:
            group = node.attributes.get("group")
            found.add(node.op_type + (" in groups" if group is not None and group.as_int() != 1 else ""))
    return found


def _kinds(ledger: Ledger) -> dict[int, Kind]:
    """What each set of atoms is, by the strongest claim: a head is also a row of a MatMul."""
    strength: dict[Kind, int] = {"neurons": 0, "channels": 1, "heads": 2, "hidden": 3}
    kinds: dict[int, Kind] = {}
    for kind, ids in ledger.kinds:
        for atom in set(ids.tolist()):
            root = ledger.atoms.root(atom)
            if strength[kind] >= strength[kinds.get(root, "neurons")]:
                kinds[root] = kind
    return kinds


def _unused(base: str, slots: tuple[Slot, ...], taken: set[str]) -> str:
    """One weight may make several families (the parts of a Split): those behind the first are told apart by a place."""
    first = next(slot for slot in slots if slot.role == "producer")
    name = base if base not in taken else f"{base}[{first.axis},{first.indices[0][0]}]"
    taken.add(name)
    return name


def _frozen(ledger: Ledger) -> list[Frozen]:
    """Every producing axis that is frozen all over."""
    found = []
    for value, layout in ledger.constants.items():
        for ids in layout:
            if ids is None or ledger.atoms.is_live(ids) or not len(ids):
                continue
            if any(ledger.roles.get(atom) == "producer" for atom in ids.tolist()):
                found.append(Frozen(str(value.name), ledger.atoms.reason(int(ids[0])) or ""))
    return found


def _rewrites(ledger: Ledger, numbers: dict[int, int]) -> tuple[Rewrite, ...]:
    def labels(ids: Ids) -> tuple[int, ...]:
        return tuple(numbers.get(ledger.atoms.root(atom), -1) for atom in ids.tolist())

    rewrites = []
    for note in ledger.pending:
        parts = tuple(labels(part) for part in note.parts)
        if any(number >= 0 for part in parts for number in part):
            name = str(note.node.outputs[0].name)
            rewrites.append(Rewrite(name, note.what, note.position, note.entry, note.length, parts))
    return tuple(rewrites)
