"""What the runtime's own fused attention operators promise: whole heads go.

Called by ``links``. Both keep a head's places together inside the last axis, in the order heads, places; ``num_heads`` is rewritten. Masks, biases by position
and past states are left as they are: they are not promised, so a model that shares them between heads stays frozen only where it has to.
"""

from __future__ import annotations

import numpy as np

from edgeopt.graph.atoms import Ids
from edgeopt.graph.links_layers import Layouts
from edgeopt.graph.links_ledger import Operation

_PAST = range(4, 7)


def attention(op: Operation) -> Layouts:
    """Attention: input [B, S, C], weight [C, 3 * H * D] and bias [3 * H * D] with query, key and value side by side."""
    heads, sizes = op.integer("num_heads", 0), op.integers("qkv_hidden_sizes")
    if not op.is_constant(1) or op.rank(0) != 3 or _reads(op, _PAST) or len(op.node.outputs) > 1 or sizes is not None:
        return None
    op.unite(op.axis(0, 2), op.axis(1, 0))
    op.mark(op.axis(1, 0), "consumer")
    packed = op.axis(1, 1)
    if packed is None or not heads or len(packed) % (3 * heads):
        return None
    units = _heads(op, packed, parts=3, heads=heads)
    op.mark(packed, "producer")
    if op.has(2):
        op.unite(op.axis(2, 0), packed)
        op.mark(op.axis(2, 0), "follower")
    op.rewrite("num_heads", units)
    places = len(packed) // (3 * heads)
    return [op.made({0: op.axis(0, 0), 1: op.axis(0, 1), 2: np.repeat(units, places)}, rank=3)]


def multi_head_attention(op: Operation) -> Layouts:
    """MultiHeadAttention: query, key and value [B, S, H * D] of their own."""
    heads = op.integer("num_heads", 0)
    if _reads(op, range(5, 10)) or len(op.node.outputs) > 1 or not (op.has(1) and op.has(2)) or not heads:
        return None
    columns = [op.axis(position, 2) for position in range(3) if op.rank(position) == 3]
    known = [ids for ids in columns if ids is not None and len(ids) % heads == 0]
    if len(known) != 3:
        return None
    units = [_heads(op, ids, parts=1, heads=heads) for ids in known]
    for other in units[1:]:
        op.unite(units[0], other)
    if op.has(3):
        op.unite(op.axis(3, 0), np.concatenate(known))
        op.mark(op.axis(3, 0), "follower")
    op.rewrite("num_heads", units[0])
    last = np.repeat(units[0], len(known[2]) // heads)
    return [op.made({0: op.axis(0, 0), 1: op.axis(0, 1), 2: last}, rank=3)]


def _reads(op: Operation, positions: range) -> bool:
    return any(op.has(position) for position in positions)


def _heads(op: Operation, ids: Ids, *, parts: int, heads: int) -> Ids:
    """Tie the places of each head, in all ``parts``; one atom a head."""
    grid = np.moveaxis(ids.reshape(parts, heads, -1), 1, 0).reshape(heads, -1)
    op.ledger.atoms.tie(grid)
    op.kind(grid[:, 0], "heads")
    return grid[:, 0]
