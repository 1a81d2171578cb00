"""The ledger that the link functions write: layouts of tensors, roles of constants, and what must be rewritten.

Stands between ``atoms`` and the functions in ``links_*``. An :class:`Operation` is one node as such a function sees it. The rule that keeps graphs right
lives here: an axis of an input that a function did not ask for with :meth:`Operation.axis` is frozen when the function returns. So
a function that forgets something makes a model less prunable, never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import onnx_ir as ir

from edgeopt.graph import tensors
from edgeopt.graph.atoms import Atoms, Axis, Ids, Layout

Shapes: TypeAlias = Mapping[str, Sequence[int | None]]
"""A value's name to its lengths, None where they differ from sample to sample."""
Role: TypeAlias = Literal["producer", "consumer", "follower"]
Kind: TypeAlias = Literal["channels", "heads", "neurons", "hidden"]
What: TypeAlias = Literal["target", "inferred", "split", "slice", "group", "hidden_size", "num_heads"]

_WEIGHT: dict[Role | None, int] = {"follower": 1, "producer": 2, "consumer": 3}


@dataclass(frozen=True, slots=True)
class Size:
    """One element of a computed shape: a known number, or unknown and then perhaps the length of ``axis``."""

    number: int | None = None
    axis: Axis = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A number in the graph that says how long a cut axis is; ``parts`` are the atoms that it counts."""

    node: ir.Node
    what: What
    position: int
    """Input of the node that holds the number, where it is an input."""
    entry: int
    """Which number of that input."""
    length: int
    """How many numbers that input holds."""
    parts: tuple[Ids, ...]


@dataclass(slots=True)
class Ledger:
    """Everything that is known of one graph's tensors while it is walked."""

    graph: ir.Graph
    shapes: Shapes
    """As seen when the model ran; those of the main graph only."""
    opset: int
    ambiguous: frozenset[str] = frozenset()
    """Names that two graphs of the model use: what they name cannot be spoken of."""
    atoms: Atoms = field(default_factory=Atoms)
    layouts: dict[ir.Value, Layout | None] = field(default_factory=dict)
    sizes: dict[ir.Value, tuple[Size, ...]] = field(default_factory=dict)
    constants: dict[ir.Value, Layout] = field(default_factory=dict)
    """The constants in the order in which nodes read them."""
    derived: set[ir.Value] = field(default_factory=set)
    """Values that hang on constants alone."""
    roles: dict[int, Role] = field(default_factory=dict)
    kinds: list[tuple[Kind, Ids]] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)

    def layout(self, value: ir.Value) -> Layout | None:
        """The axes of ``value``; None where not even its rank is known."""
        if value not in self.layouts:
            self.layouts[value] = self._first_seen(value)
        return self.layouts[value]

    def lengths(self, value: ir.Value) -> list[int | None] | None:
        """What is known of a value's shape from outside."""
        known = self.shapes.get(value.name or "") if value.graph is self.graph else None
        if known is not None:
            return list(known)
        if value.shape is None:
            return None
        return [size if isinstance(size, int) else None for size in value.shape]

    def frozen(self, value: ir.Value, reason: str) -> Layout | None:
        """A layout for ``value`` in which nothing may go."""
        lengths = self.lengths(value)
        return None if lengths is None else tuple(self.atoms.frozen(length, reason) for length in lengths)

    def freeze(self, value: ir.Value, reason: str) -> None:
        """Nothing of ``value`` may go, and nothing that its numbers count."""
        for axis in self.layout(value) or ():
            self.atoms.freeze(axis, reason)
        for size in self.sizes.get(value, ()):
            self.atoms.freeze(size.axis, reason)

    def _first_seen(self, value: ir.Value) -> Layout | None:
        tensor = tensors.constant(value) if is_constant(value) else None
        if tensor is None:
            return self.frozen(value, f"it is tied to {value.name!r}, which the model is given")
        layout = tuple(self.atoms.fresh(int(length)) for length in tensor.shape.numpy())
        for axis in layout:
            if axis is not None and len(axis) < 2:
                self.atoms.freeze(axis, f"{value.name!r} has one of it only")
            elif value.name in self.ambiguous:
                self.atoms.freeze(axis, f"the name {value.name!r} is used in two graphs")
        self.constants[value] = layout
        self.derived.add(value)
        return layout


@dataclass(slots=True)
class Operation:
    """One node and what its link function promises about it."""

    node: ir.Node
    ledger: Ledger
    _promised: set[tuple[int, int]] = field(default_factory=set)
    _counted: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        return f"{self.node.op_type} {self.node.name or self.node.outputs[0].name!r}"

    def has(self, position: int) -> bool:
        return position < len(self.node.inputs) and self.node.inputs[position] is not None

    def input(self, position: int) -> ir.Value:
        value = self.node.inputs[position]
        if value is None:
            raise ValueError(f"{self.label} has no input {position}")
        return value

    def layout(self, position: int) -> Layout:
        return self.ledger.layout(self.input(position)) or ()

    def rank(self, position: int) -> int:
        return len(self.layout(position))

    def lengths(self, position: int) -> list[int | None]:
        return [None if axis is None else len(axis) for axis in self.layout(position)]

    def is_constant(self, position: int) -> bool:
        return self.has(position) and self.input(position) in self.ledger.derived

    def axis(self, position: int, axis: int) -> Axis:
        """The atoms of one input axis, with the promise that the operator treats each of its indices alone."""
        layout = self.layout(position)
        self._promised.add((position, axis % len(layout)))
        return layout[axis]

    def sizes(self, position: int) -> tuple[Size, ...] | None:
        """The elements of an integer vector, with the promise to look after the axes that they count; None without its length."""
        self._counted.add(position)
        value = self.input(position)
        data = tensors.array(value)
        if data is not None and data.dtype.kind in "iu":
            return tuple(Size(int(number)) for number in data.reshape(-1))
        lengths = self.lengths(position)
        unknown = (Size(),) * lengths[0] if len(lengths) == 1 and lengths[0] else None
        return self.ledger.sizes.get(value, unknown)

    def numbers(self, position: int) -> list[int] | None:
        """The elements of an integer input where all are constant."""
        data = tensors.array(self.input(position)) if self.has(position) else None
        return [int(number) for number in data.reshape(-1)] if data is not None and data.dtype.kind in "iu" else None

    def integer(self, name: str, default: int) -> int:
        attribute = self.node.attributes.get(name)
        return attribute.as_int() if attribute is not None and not attribute.is_ref() else default

    def integers(self, name: str) -> list[int] | None:
        attribute = self.node.attributes.get(name)
        return list(attribute.as_ints()) if attribute is not None and not attribute.is_ref() else None

    def text(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return attribute.as_string() if attribute is not None and not attribute.is_ref() else default

    def unite(self, one: Axis, other: Axis) -> None:
        """Tie two axes index by index; an axis of unknown or other length freezes its partner."""
        if one is not None and other is not None and len(one) == len(other):
            self.ledger.atoms.unite(one, other)
            return
        for axis in (one, other):
            self.ledger.atoms.freeze(axis, f"{self.label} ties it to an axis whose length is not known")

    def freeze(self, axis: Axis, because: str) -> None:
        self.ledger.atoms.freeze(axis, f"{self.label} {because}")

    def mark(self, axis: Axis, role: Role) -> None:
        """Say what a constant's axis is for; one that is read in two ways counts as a consumer, since those are zeroed."""
        roles = self.ledger.roles
        for atom in axis.tolist() if axis is not None else ():
            if _WEIGHT[role] > _WEIGHT.get(roles.get(atom), 0):
                roles[atom] = role

    def kind(self, axis: Axis, kind: Kind) -> None:
        if axis is not None:
            self.ledger.kinds.append((kind, axis))

    def rewrite(self, what: What, *parts: Axis, position: int = 0, entry: int = 0) -> None:
        """Note a number that shrinks with the axes it counts."""
        known = tuple(part for part in parts if part is not None)
        if self.node.outputs[0].name in self.ledger.ambiguous:
            for part in known:
                self.freeze(part, "has a name that is used in two graphs")
        if len(known) == len(parts):
            length = len(self.sizes(position) or ()) if what in ("target", "inferred") else 0
            self.ledger.pending.append(Pending(self.node, what, position, entry, length, known))

    def made(self, axes: Mapping[int, Axis], *, output: int = 0, rank: int | None = None) -> Layout | None:
        """The layout of an output: ``axes`` where given, frozen elsewhere."""
        lengths = self.ledger.lengths(self.node.outputs[output])
        if lengths is None and rank is None:
            return None
        lengths = lengths if lengths is not None else [None] * (rank or 0)
        rest = f"{self.label} needs all of it"
        return tuple(
            axes[axis] if axis in axes else self.ledger.atoms.frozen(length, rest)
            for axis, length in enumerate(lengths)
        )

    def close(self, because: str) -> None:
        """Freeze what was not promised."""
        reason = f"{self.label} {because}"
        for position, value in enumerate(self.node.inputs):
            if value is None:
                continue
            for axis, atoms in enumerate(self.ledger.layout(value) or ()):
                if (position, axis) not in self._promised:
                    self.ledger.atoms.freeze(atoms, reason)
            if position not in self._counted:
                for size in self.ledger.sizes.get(value, ()):
                    self.ledger.atoms.freeze(size.axis, reason)

    def forget(self) -> None:
        """Take every promise back."""
        self._promised.clear()
        self._counted.clear()


def is_constant(value: ir.Value) -> bool:
    """A constant of its own: an initializer that no caller may override, or a Constant node's output."""
    if value.is_graph_input():
        return False
    node = value.producer()
    return value.is_initializer() or (
        node is not None and node.op_type == "Constant" and node.domain in ("", "ai.onnx")
    )
