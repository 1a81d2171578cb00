"""What a family can give up: the damage at a tenth, three tenths and half of its units, in the blocks that the search removes."""

from __future__ import annotations

from edgeopt.stages import frailty
from edgeopt.stages.allotment import Share


def share(damages: tuple[float, ...], *, units: int = 40, step: int = 4) -> Share:
    return Share(name="conv.weight", units=units, step=step, cost=3.0, damages=damages)


def test_damage_is_read_at_the_nearest_block_that_can_go() -> None:
    (row,) = frailty.rows([share((0.01, 0.02, 0.04, 0.08, 0.16))], 12.0)
    assert (row["name"], row["units"], row["cost_ratio"]) == ("conv.weight", 40, 0.25)
    assert row["damage"] == [
        {"ratio": 0.1, "removed": 4, "damage": 0.01},
        {"ratio": 0.3, "removed": 12, "damage": 0.04},
        {"ratio": 0.5, "removed": 20, "damage": 0.16},
    ]


def test_family_of_few_blocks_tells_the_first_one_for_a_tenth() -> None:
    (row,) = frailty.rows([share((0.5,), units=16, step=8)], 3.0)
    assert [(entry["ratio"], entry["removed"]) for entry in row["damage"]] == [(0.1, 8), (0.3, 8), (0.5, 8)]


def test_what_was_not_ranked_is_missing_and_never_guessed() -> None:
    (row,) = frailty.rows([share((0.01, 0.02))], 12.0)
    assert [entry["ratio"] for entry in row["damage"]] == [0.1]


def test_layers_that_cost_nothing_make_no_share() -> None:
    assert frailty.rows([share((0.01,))], 0.0)[0]["cost_ratio"] == 0.0
