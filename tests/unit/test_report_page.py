"""The report page: what it says, that it hides nothing, and that a hostile name stays a name."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from edgeopt.stages import report_chart, report_page, report_words

CLEAN_UP = {"technique": "tidy"}
STATIC = [CLEAN_UP, {"technique": "quantize_static", "method": "mse", "per_channel": True}]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
)  # fmt: skip


class Elements(HTMLParser):
    """Collects what the page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self._open[-1:]:
            self.text += data


def quality(drop: float = 0.002, high: float = 0.006, kind: str = "accuracy") -> dict[str, Any]:
    return {"kind": kind, "metric": kind, "value": 0.983, "drop": drop, "ci95": [0.0, high], "samples": 540}


def measured(speedup: float, **found: Any) -> dict[str, Any]:
    return {
        "speedup": {"value": speedup, "ci95": [speedup - 0.02, speedup + 0.02]},
        "latency_ms": {"p50": 0.6 / speedup, "p90": 0.7 / speedup, "p99": 0.9 / speedup},
        "bytes_ratio": 2.0,
        "peak_memory_bytes": 32 << 20,
        "quality": quality(**found),
    }


def manifest(**changed: Any) -> dict[str, Any]:
    whole = {
        "schema": 1, "name": "digits", "version": 3, "created": "2026-11-24T03:10:22Z", "edgeopt": "0.1.0",
        "source": {"file": "digits.onnx", "format": "onnx", "sha256": "ab" * 32, "bytes": 280_000},
        "artifact": {"file": "model.onnx", "format": "onnx", "sha256": "cd" * 32, "bytes": 140_000,
                     "runtime": "onnxruntime", "runtime_version": "1.32.0", "session": {"intra_op_num_threads": 2}},
        "target": {"name": "cpu", "device": "a device", "arch": "x86_64", "features": ["avx2"], "threads": 2},
        "goal": {"objective": "latency", "metric": "auto", "max_drop": 0.01, "min_speedup": 1.02},
        "recipe": STATIC,
        "verdict": "the fastest within the budget",
        "result": measured(1.83),
        "baseline": {"latency_ms": {"p50": 0.6, "p90": 0.7, "p99": 0.9}, "bytes": 280_000,
                     "peak_memory_bytes": 40 << 20, "quality": quality(0.0, 0.0)},
        "candidates": [
            {"recipe": [], "result": measured(1.0, drop=0.0, high=0.0)},
            {"recipe": STATIC, "result": measured(1.83)},
            {"recipe": [{"technique": "cast_fp16"}], "refused": "this CPU has no fp16 kernels"},
            {"recipe": [{"technique": "quantize_dynamic"}], "result": measured(1.9, drop=0.3, high=0.4),
             "refused": "its drop may be 40 %"},
        ],
        "data": {"calibration": {"sha256": "ef" * 32, "samples": 180, "origin": "drop"}, "eval": None},
        "environment": {"onnxruntime": "1.32.0", "cpu": "a device"},
    }  # fmt: skip
    return {**whole, **changed}


def test_the_headline_says_what_was_gained_and_the_text_how_sure_that_is() -> None:
    text = Elements(report_page.render(manifest())).text
    assert "digits runs 1.83 times as fast" in text
    assert "with 95 % confidence the speedup lies between 1.81 and 1.85" in text
    assert "a drop of at most 0.6 % at 95 % confidence; allowed was 1 %" in text
    assert "the fastest within the budget" in text


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("size", "is 2.00 times smaller"),
        ("memory", "needs 1.25 times less memory"),
        ("latency", "runs 1.83 times as fast"),
    ],
)
def test_the_headline_speaks_of_the_objective_that_was_asked_for(objective: str, words: str) -> None:
    assert words in report_page.headline(manifest(goal={"objective": objective, "max_drop": 0.01}))


def test_a_version_that_is_the_original_claims_no_gain() -> None:
    same = measured(1.0, drop=0.0, high=0.0)
    assert report_page.headline(manifest(recipe=[], result=same)) == "digits is published as it came"
    cleaned = report_page.headline(manifest(recipe=[CLEAN_UP], result=same))
    assert cleaned == "digits is published cleaned up; nothing proved better"


def test_made_up_inputs_are_never_called_accuracy() -> None:
    found = measured(1.2, kind="synthetic")
    sentence = report_page.quality_sentence(manifest(result=found))
    assert "made-up inputs" in sentence
    assert "proves nothing about accuracy" in sentence


def test_agreement_says_that_there_were_no_labels() -> None:
    assert "no labels were dropped" in report_page.quality_sentence(manifest(result=measured(1.2, kind="agreement")))


def test_every_candidate_stands_in_the_table_with_its_outcome() -> None:
    rows = report_page.candidates(manifest())
    assert [row.state for row in rows] == ["original", "winner", "refused", "refused"]
    assert rows[2].outcome == "this CPU has no fp16 kernels"
    assert rows[2].latency == report_words.NOT_MEASURED
    assert rows[3].drop_bound == "at most 40.0 %"
    text = Elements(report_page.render(manifest())).text
    assert all(row.outcome in text and all(step in text for step in row.steps) for row in rows)


def test_the_page_tells_how_to_make_the_version_again() -> None:
    text = Elements(report_page.render(manifest())).text
    assert "edgeopt optimize MODEL --recipe manifest.json" in text
    assert '"technique": "quantize_static", "method": "mse"' in text


def test_nothing_on_the_page_runs_or_refers_to_anything_outside_of_it() -> None:
    page = report_page.render(manifest())
    elements = Elements(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in {"src", "href", "style"}]
    assert "url(" not in page
    assert "@import" not in page
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in elements.attributes


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_string_anywhere_is_shown_as_text(name: str) -> None:
    candidates = [
        {"recipe": [], "result": measured(1.0)},
        {"recipe": [{"technique": name, name: name}], "refused": name},
        {"recipe": name, "result": measured(1.1)},
    ]
    page = report_page.render(
        manifest(
            name=name,
            verdict=name,
            recipe=[{"technique": name}],
            candidates=candidates,
            environment={name: name},
            source={"file": name},
            created=name,
            edgeopt=name,
        )
    )
    elements, plain = Elements(page), Elements(report_page.render(manifest()))
    assert set(elements.tags) <= set(plain.tags)
    assert {attribute for attribute, _ in elements.attributes} <= {attribute for attribute, _ in plain.attributes}
    assert name in elements.text


def test_characters_that_hide_or_reorder_text_become_visible() -> None:
    page = report_page.render(manifest(name="a\u202egnp.exe\nb\x1b[31m\u200b\ud800"))
    text = Elements(page).text
    assert "a\\u202egnp.exe\\u000ab\\u001b[31m\\u200b\\ud800" in text
    assert not re.search("[\u202e\u200b\x1b\ud800]", page)
    page.encode("utf-8")


def test_a_manifest_without_measurements_still_makes_a_page() -> None:
    page = report_page.render(
        {"name": "bare", "candidates": [{"recipe": [], "refused": "no samples"}], "edgeopt": "0.1.0"}
    )
    assert "bare is published as it came" in page
    assert "Its quality was not measured." in page


def test_a_row_without_both_numbers_claims_no_change() -> None:
    row = report_page.changes(manifest(baseline={}))[0]
    assert (row.before, row.change, row.better) == (report_words.NOT_MEASURED, report_words.NOT_MEASURED, None)


def test_the_chart_keeps_a_broken_candidate_from_squeezing_the_others() -> None:
    chart = report_chart.chart(manifest(), ["original", "winner", "refused", "refused"])
    assert chart is not None
    # the published one is drawn last, on top of the others
    assert [(point.number, point.beyond) for point in chart.points] == [(1, False), (4, True), (2, False)]
    assert chart.points[1].y == report_chart.TOP
    assert chart.budget_y > report_chart.TOP
    assert chart.points[0].x < chart.points[2].x < chart.points[1].x


def test_points_on_one_spot_keep_their_labels_apart() -> None:
    many = [{"recipe": [], "result": measured(1.5)} for _ in range(8)]
    chart = report_chart.chart(manifest(candidates=many), ["allowed"] * 8)
    assert chart is not None
    heights = sorted(point.label_y for point in chart.points)
    assert all(second - first >= 14 for first, second in itertools.pairwise(heights))


def test_one_measured_candidate_is_no_picture() -> None:
    assert report_chart.chart(manifest(candidates=[{"recipe": [], "result": measured(1.0)}]), ["original"]) is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (None, "-"),
        (0, "0 %"),
        (0.006, "0.6 %"),
        (0.01, "1 %"),
        (0.00012, "0.012 %"),
        (-0.002, "-0.2 %"),
        (3.6e-31, "<0.001 %"),
        (-1e-9, "0 %"),
        (0.4, "40.0 %"),
    ],
)
def test_percentages_show_the_digits_that_count(ratio: float | None, text: str) -> None:
    assert report_words.percent(ratio) == text


@pytest.mark.parametrize(
    ("speedup", "bytes_ratio", "said"),
    [(1.01, 5.0, "5.00x smaller; saves bytes, no speed"), (1.4, 5.0, "5.00x smaller"), (0.99, 1.01, "1.01x smaller")],
)
def test_a_candidate_that_only_saves_bytes_says_so(speedup: float, bytes_ratio: float, said: str) -> None:
    result = measured(speedup) | {"bytes_ratio": bytes_ratio}
    (row,) = report_page.candidates(manifest(candidates=[{"recipe": STATIC, "result": result}]))
    assert row.size == said


@pytest.mark.parametrize(
    ("speedup", "said"), [(1.01, "1.80x smaller; no speed: zeros are multiplied too"), (1.4, "1.80x smaller")]
)
def test_a_sparse_candidate_says_that_a_dense_runtime_gains_no_speed(speedup: float, said: str) -> None:
    recipe = [{"technique": "tidy"}, {"technique": "prune_weights", "pattern": "2:4"}]
    result = measured(speedup) | {"bytes_ratio": 1.8}
    (row,) = report_page.candidates(manifest(candidates=[{"recipe": recipe, "result": result}]))
    assert row.size == said


def test_the_page_says_which_edgeopt_made_it_and_when_as_far_as_known() -> None:
    page = Elements(report_page.render(manifest())).text
    assert "0.1.0" in page
    assert "2026-11-24T03:10:22Z" in page
    assert ("Made by", [("edgeopt", "0.1.0")]) in report_page.facts(manifest(created=""))


ENGINE = {"key": "k", "gpus": ["SM75"], "build_s": 1.0, "products": 64, "int8_products": 0, "quantized_products": 64}


def with_engine(**changes: Any) -> str:
    artifact = {**manifest()["artifact"], "engine": {**ENGINE, **changes}}
    return Elements(report_page.render(manifest(artifact=artifact))).text


def test_engines_coverage_is_a_row_of_its_own_and_undone_quantization_a_warning() -> None:
    assert "Layers that multiply in int8-0 of 64" in with_engine()
    assert "Warning: 0 of 64 layers run in int8 on SM75" in with_engine()
    covered = with_engine(int8_products=48)
    assert "48 of 64" in covered
    assert "Warning" not in covered


def test_engine_whose_log_did_not_tell_claims_no_coverage() -> None:
    assert "Layers that multiply in int8--" in with_engine(products=None, int8_products=None)


def test_facts_of_an_engine_from_another_release_are_shown_plainly() -> None:
    shown = with_engine(sparse_products=3)
    assert "Layers that multiply" not in shown
    assert "engine.sparse_products" in shown


def test_the_page_shows_what_each_family_of_channels_can_give_up() -> None:
    damage = [{"ratio": 0.1, "removed": 8, "damage": 0.0123}, {"ratio": 0.3, "removed": 24, "damage": 0.21}]
    family = {"name": HOSTILE[0], "units": 80, "cost_ratio": 0.25, "damage": damage}
    page = Elements(report_page.render(manifest() | {"pruning": {"families": [family]}}))
    assert "script" not in page.tags
    for text in (HOSTILE[0], "80", "25.0 %", "1.2 % (8 gone)", "21.0 % (24 gone)"):
        assert text in page.text
    assert "What each family" not in Elements(report_page.render(manifest())).text
