"""A cut graph gives what the whole graph gives with the cut units silenced: random small graphs, random masks.

Each graph is a random chain of blocks out of a short list; whatever the analysis calls a family may lose any of its units, and ONNX Runtime
says whether that was true. Freezing too much is caught by :data:`MUST_FIND`: what each block alone has to offer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net, feeds, run
from channel_blocks import BLOCKS, conv
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import check
from edgeopt.graph.groups import ChannelGroups, find
from edgeopt.graph.shrink import shrink, zeroed

MUST_FIND = {
    "plain": [7, 8], "residual": [5, 7], "depthwise": [4, 7, 8], "multiplied": [4, 5, 7], "few_groups": [4, 4, 6, 7], "many_groups": [4, 6, 7],
    "concat": [4, 5, 6, 7], "split": [3, 4, 4, 5, 7], "gated": [5, 6, 7], "sliced": [4, 4, 5, 7], "excite": [4, 5, 7, 8], "excite_dense": [3, 5, 7, 8],
    "transposed": [5, 6, 7, 7], "shuffled": [4, 5, 7], "resized": [5, 6, 7], "padded": [5, 6, 7], "depth_to_space": [3, 4, 5, 7], "folded_weight": [4, 6, 7],
    "attention": [4, 6, 7], "packed_attention": [4, 7], "shaped_at_run_time": [5, 6, 7], "lstm": [4, 5, 7], "lstm_both_ways": [4, 5, 7], "gru": [4, 5, 7],
    "spatial_attention": [4, 5, 7], "channel_softmax": [5, 7], "normalized_groups": [5, 7], "instance": [5, 6, 7], "not_understood": [5, 7],
    "counted": [5, 7], "copied_shape": [5, 6, 7], "picked": [7], "padded_channels": [5, 7], "similarity": [4, 5, 7], "tied_layers": [5, 6, 7],
    "captured": [5, 7], "looked_up": [5, 7, 8], "few_channels": [5, 5, 7], "joined_frames": [5, 6, 7],
    "folded_heads": [4, 5, 7], "repeated_heads": [4, 5, 7], "zero_states": [4, 5, 7],
    "layer_normalized": [5, 7, 9], "feed_forward": [7, 10], "averaged": [5, 6, 7], "transposed_groups": [3, 4, 5, 7],
    "gru_both_ways": [4, 5, 7], "rnn": [4, 5, 7], "rnn_both_ways": [4, 5, 7],
}  # fmt: skip
"""Units of each family of a model that is a stem of 7 channels, this block and a dense head."""


def model_of(blocks: list[str], *, seed: int = 0, constants: bool = False) -> ir.Model:
    net = Net(seed=seed, constants=constants)
    value = conv(net, ("image", 3), 7, 3)
    for name in blocks:
        value = BLOCKS[name](net, value)
    rows = net.op("Flatten", value[0])
    net.op("Gemm", rows, net.weight(36 * value[1], 4, scale=0.1), net.weight(4), output="scores")
    return net.build({"image": ["N", 3, 6, 6]}, {"scores": ["N", 4]})


def analysed(blocks: list[str], *, seed: int = 0, constants: bool = False) -> tuple[ir.Model, ChannelGroups]:
    model = model_of(blocks, seed=seed, constants=constants)
    return model, find(model, observed_shapes(model, FakeEvidence(model, samples=2)))


def assert_cut_is_silence(model: ir.Model, groups: ChannelGroups, removed: dict[str, list[int]]) -> None:
    smaller, silenced = shrink(model, groups, removed), zeroed(model, groups, removed)
    check.verify(smaller, like=model)
    for symbols in (1, 3):
        inputs = feeds(model, seed=symbols, symbols=symbols)
        for ours, theirs in zip(run(smaller, inputs), run(silenced, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_each_block_offers_what_it_has(name: str) -> None:
    _, groups = analysed([name])
    assert sorted(family.units for family in groups.families) == MUST_FIND[name]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_each_unit_of_each_block_can_go_alone(name: str) -> None:
    model, groups = analysed([name])
    for family in groups.families:
        assert_cut_is_silence(model, groups, {family.name: [family.units - 1]})


@given(
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
    share=st.floats(0.1, 0.9),
    constants=st.booleans(),
)
def test_cut_graph_gives_what_the_silenced_graph_gives(
    blocks: list[str], seed: int, share: float, *, constants: bool
) -> None:
    model, groups = analysed(blocks, seed=seed, constants=constants)
    random = np.random.default_rng(seed)
    removed = {
        family.name: sorted(random.choice(family.units, size=int(share * family.units), replace=False).tolist())
        for family in groups.families
    }
    assert_cut_is_silence(model, groups, removed)
