"""The comparison with the field's tools: who wins, what a failure looks like, what is made again. No tool runs here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import measure, produce, table
from benchmarks.peers.field import FIELD, OWN, Entry, Facts, chosen
from benchmarks.peers.prepare import Prepared
from benchmarks.peers.produce import Record
from benchmarks.peers.rows import CONTROL, Row, bytes_of, is_right, passes_worth, with_passes
from edgeopt.records import Interval, Quality

PASSES = 5
MADE = Record(model="/somewhere/model.onnx", wall_s=12.0, cpu_s=10.0, peak_memory_bytes=1 << 20)
TRANSFORMER = Facts(operators={"LayerNormalization": 2, "Softmax": 1, "MatMul": 9}, judged_output=0, judged_by="nsr")
CONVOLUTIONS = Facts(operators={"Conv": 9, "Softmax": 1}, judged_output=0, judged_by="agreement")


def entry(tool: str, recipe: str = "default") -> Entry:
    return Entry(tool=tool, recipe=recipe, label=f"{tool} {recipe}")


def row(which: Entry, *, speedup: float = 1.0, smaller: float = 1.0, drop: float = 0.0, bound: float = 0.0) -> Row:
    quality = Quality(kind="agreement", metric="nsr", value=1 - drop, drop=drop, ci95=(0.0, bound), samples=100)
    interval = Interval(value=speedup, low=speedup * 0.98, high=speedup * 1.02)
    return Row(
        entry=which, record=MADE, bytes_ratio=smaller, quality=quality, speedup=interval, passes=(speedup,) * PASSES
    )


CONTROL_ROW = row(CONTROL, speedup=9.0)
PICK = row(entry(OWN, "latency"), speedup=1.5, bound=0.005)


def speed_verdict(*rows: Row) -> str:
    return table.verdict([CONTROL_ROW, *rows], table.speed, own="latency", what="Fastest")


# ---------------------------------------------------------------- who won
def test_faster_tool_beyond_the_budget_does_not_win() -> None:
    said = speed_verdict(PICK, row(entry("nncf"), speedup=3.0, drop=0.3, bound=0.4), row(entry("olive"), speedup=1.2))
    assert said == "Fastest: edgeopt, 1.50 times; the best tool is olive default, 1.20 times."


def test_table_says_plainly_that_a_peer_wins() -> None:
    assert speed_verdict(PICK, row(entry("nncf"), speedup=1.9)).startswith("Fastest: a peer wins: nncf default, 1.90")


def test_speeds_within_each_others_intervals_are_called_so() -> None:
    assert "(their intervals overlap)" in speed_verdict(PICK, row(entry("nncf"), speedup=1.51))
    assert "overlap" not in speed_verdict(PICK, row(entry("nncf"), speedup=1.9))


def test_nothing_is_concluded_from_what_is_only_judged() -> None:
    said = table.verdict([untimed(entry("nncf")), untimed(CONTROL)], table.speed, own="latency", what="Fastest")
    assert said == "Fastest: nothing is measured yet."


def test_verdict_on_one_pass_or_two_says_so() -> None:
    twice = dataclasses.replace(row(entry("nncf"), speedup=1.2), passes=(1.2, 1.2))
    assert "1.20 times (measured in 2 passes only)." in speed_verdict(PICK, twice)
    once = dataclasses.replace(PICK, passes=(1.5,))
    assert "(their intervals overlap, measured in 1 pass only)" in speed_verdict(once, row(entry("nncf"), speedup=1.51))


def test_tool_whose_bound_alone_fails_is_named_beside_the_verdict() -> None:
    said = speed_verdict(PICK, row(entry("quark"), speedup=2.0, drop=0.001, bound=0.4))
    assert said.startswith("Fastest: edgeopt, 1.50 times; no tool gains anything within it.")
    assert said.endswith("By the drop seen (0.0010) and not its bound, quark default would be first with 2.00.")


def test_pick_beyond_the_budget_is_no_winner() -> None:
    wrong = row(entry(OWN, "latency"), speedup=3.0, drop=0.02, bound=0.03)
    said = speed_verdict(wrong, row(entry("nncf"), speedup=1.1))
    assert said == (
        "Fastest: nncf default, 1.10 times; edgeopt's pick for latency does not meet the budget, with a bound of 0.0300."
    )


def test_missing_pick_is_said_to_be_missing_and_why() -> None:
    unmade = Row(entry=entry(OWN, "latency"), record=None, failure="not produced")
    failed = Row(entry=entry(OWN, "latency"), record=MADE, failure="no result within 300 s")
    untimed = dataclasses.replace(PICK, speedup=None, passes=())
    for pick, reason in (
        (unmade, "is missing: it was not produced"),
        (failed, "is missing: no result within 300 s"),
        (untimed, "is right, and not measured"),
    ):
        assert speed_verdict(pick) == f"Fastest: no tool gains anything; edgeopt's pick for latency {reason}."
    assert "edgeopt's pick for latency is missing" in speed_verdict()


def test_size_is_judged_by_the_pick_for_size() -> None:
    rows = [PICK, row(entry(OWN, "size"), smaller=5.0), row(entry("onnxruntime"), smaller=4.0)]
    said = table.verdict(rows, table.size, own="size", what="Smallest")
    assert said == "Smallest: edgeopt, 5.00 times; the best tool is onnxruntime default, 4.00 times."


def test_what_only_loses_is_not_the_fastest() -> None:
    assert table.best([row(entry("onnxslim"), speedup=0.98)], table.speed) is None
    assert "no tool gains anything within it" in speed_verdict(PICK, row(entry("onnxslim"), speedup=0.98))


def test_external_data_counts_under_every_tools_name_and_leftovers_do_not(tmp_path: Path) -> None:
    sizes = {"model.onnx": 1, "model.onnx.data": 10, "model.onnx_data": 100, "model.onnx.prepared.onnx": 1000, "log": 5}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert bytes_of(tmp_path / "model.onnx") == 111


def test_original_against_itself_is_no_contestant() -> None:
    assert table.best([CONTROL_ROW], table.speed) is None


# ---------------------------------------------------------------- how it is shown
def test_failure_is_a_row_with_its_reason() -> None:
    failed = Row(
        entry=entry("aimet"),
        record=dataclasses.replace(MADE, failure="ValueError: no | kernel"),
        failure="ValueError: no | kernel",
    )
    line = next(line for line in table.markdown([failed, PICK]).splitlines() if "aimet" in line)
    assert line == "| aimet default | - | - | - | - | - | no | 12 / 10 | ValueError: no / kernel |"


def test_reason_names_files_without_the_folders_of_this_machine() -> None:
    failed = Row(entry=entry("aimet"), record=MADE, failure="does not open /home/me/peers/out/model.onnx: 1/2 of it")
    assert "| does not open model.onnx: 1/2 of it |" in table.markdown([failed])


def test_fastest_and_smallest_right_rows_are_in_bold() -> None:
    text = table.markdown([CONTROL_ROW, PICK, row(entry("inc"), smaller=4.0), row(entry("x"), speedup=7.0, bound=0.5)])
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "**1.50 [1.47, 1.53] (5)**" in lines[f"{OWN} latency"]
    assert "**4.00**" in lines["inc default"]
    assert "**" not in lines["x default"] and " as seen " in lines["x default"]


@pytest.mark.parametrize("shown", [PICK, Row(entry=entry("aimet"), record=None, failure="not produced")])
def test_row_survives_as_json(shown: Row) -> None:
    assert json.loads(json.dumps(table.as_json(shown)))["within_budget"] is is_right(shown)


def test_one_pass_has_no_interval() -> None:
    once = dataclasses.replace(row(entry("nncf"), speedup=1.2), passes=(1.2,))
    assert "| **1.20 (1)** |" in table.markdown([once])


# ---------------------------------------------------------------- how often it is timed
def untimed(which: Entry, *passes: float, drop: float = 0.0, bound: float = 0.0) -> Row:
    return dataclasses.replace(row(which, drop=drop, bound=bound), speedup=None, passes=passes)


def test_contenders_get_all_passes_and_the_rest_fewer() -> None:
    assert passes_worth(untimed(entry("a"), bound=0.005), PASSES) == PASSES
    assert passes_worth(untimed(entry("as seen"), drop=0.005, bound=0.9), PASSES) == PASSES
    assert passes_worth(untimed(entry("wrong"), drop=0.02, bound=0.03), PASSES) == 2
    assert passes_worth(untimed(entry("hopeless"), drop=0.02, bound=0.05), PASSES) == 1
    assert passes_worth(Row(entry=entry("failed"), record=MADE, failure="died"), PASSES) == 0
    assert passes_worth(untimed(entry("wrong"), drop=0.02, bound=0.03), 1) == 1


def test_what_is_slow_in_every_first_pass_gets_no_more() -> None:
    assert passes_worth(untimed(entry("unknown"), 0.5), PASSES) == PASSES
    assert passes_worth(untimed(entry("slow"), 0.5, 0.6), PASSES) == 2
    assert passes_worth(untimed(entry("unlucky once"), 0.5, 0.9), PASSES) == PASSES


def test_own_picks_and_the_control_row_get_all_passes_whatever_comes_of_them() -> None:
    for which in (entry(OWN, "latency"), CONTROL):
        assert passes_worth(untimed(which, 0.5, 0.5, drop=0.5, bound=0.9), PASSES) == PASSES


def test_speedup_is_the_median_of_the_passes_within_their_span() -> None:
    timed = with_passes(untimed(entry("a")), (1.0, 3.0, 1.2))
    assert timed.speedup == Interval(value=1.2, low=1.0, high=3.0) and timed.passes == (1.0, 3.0, 1.2)
    assert with_passes(untimed(entry("a")), ()).speedup is None


def test_broken_off_measurement_goes_on_with_its_passes(tmp_path: Path) -> None:
    file = tmp_path / "timings" / "tiny.json"
    fresh = untimed(entry("nncf"))
    assert measure.resumed([fresh], file, 2) == [fresh]
    timed = with_passes(fresh, (1.1, 1.2))
    measure.keep([timed], file, 2)
    assert measure.resumed([fresh], file, 2) == [timed]
    assert measure.resumed([fresh], file, 1) == [fresh]
    remade = dataclasses.replace(fresh, record=dataclasses.replace(MADE, model="/elsewhere/model.onnx"))
    assert measure.resumed([remade], file, 2) == [remade]


# ---------------------------------------------------------------- the field
def test_transformer_recipes_are_for_transformers() -> None:
    labels = {facts.is_transformer: {each.key for each in chosen(facts)} for facts in (TRANSFORMER, CONVOLUTIONS)}
    assert "onnxruntime-fusion" in labels[True] - labels[False]
    assert "quark-int8_cnn_default" in labels[False] - labels[True]


def test_tools_are_chosen_by_name_or_by_recipe() -> None:
    assert {each.tool for each in chosen(TRANSFORMER, ["olive"])} == {"olive"}
    assert [each.key for each in chosen(TRANSFORMER, ["nncf-accuracy_control"])] == ["nncf-accuracy_control"]


@pytest.mark.parametrize("listed", [each for each in FIELD if each.tool != OWN], ids=lambda each: each.key)
def test_every_entry_has_its_script_recipe_and_pinned_versions(listed: Entry) -> None:
    assert f'"{listed.recipe}"' in listed.script.read_text()
    pins = [line for line in listed.requirements.read_text().splitlines() if not line.startswith("#")]
    assert pins and all("==" in pin for pin in pins)


# ---------------------------------------------------------------- making
@pytest.fixture
def given(tmp_path: Path) -> Prepared:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    for file in ("model.onnx", "calibration.npz"):
        (folder / file).write_bytes(file.encode())
    return Prepared(folder=folder, eval=tmp_path / "eval.npz", facts=CONVOLUTIONS)


def keep(record: Record, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "record.json").write_text(json.dumps(dataclasses.asdict(record)))


def test_artifact_is_found_by_what_it_was_made_of(given: Prepared, tmp_path: Path) -> None:
    keep(MADE, tmp_path / "artifacts" / "tiny" / FIELD[0].key / produce.key_of(FIELD[0], given))
    assert produce.find(FIELD[0], given, tmp_path) == (MADE, True)
    given.calibration.write_bytes(b"other samples")
    assert produce.find(FIELD[0], given, tmp_path) == (MADE, False)


def test_what_was_made_is_not_made_again_nor_what_ran_out_of_time(given: Prepared, tmp_path: Path) -> None:
    late = dataclasses.replace(MADE, failure="no result within 600 s", limit_s=600.0)
    for listed, record in ((FIELD[0], MADE), (FIELD[1], late)):
        keep(record, tmp_path / "artifacts" / "tiny" / listed.key / produce.key_of(listed, given))
        assert produce.produce(listed, given, tmp_path, limit_s=600.0, again=True) == record


def test_process_that_computes_beyond_its_limit_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    started = time.monotonic()
    status, usage, was_ended = produce.wait_for(process, 0.3)
    assert was_ended and status == -15 and usage.ru_utime + usage.ru_stime >= 0.3
    assert time.monotonic() - started < 30


def test_process_that_hangs_without_computing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "_IDLE_S", 1.0)
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    status, _, was_ended = produce.wait_for(process, 300.0)
    assert was_ended and status == -15


def test_cpu_seconds_count_the_session_and_nothing_else() -> None:
    assert produce.cpu_seconds(os.getsid(0)) >= sum(os.times()[:2]) - 0.1
    assert produce.cpu_seconds(2**22 + 1) == 0.0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Traceback\n  x\nValueError: first\n\nolive.errors.PassError: the last\n  note",
            "olive.errors.PassError: the last",
        ),
        ("just\nwords", "words"),
        ("", ""),
    ],
)
def test_reason_of_a_failure_is_the_last_error_named(said: str, reason: str) -> None:
    assert produce.failure_in(said) == reason
