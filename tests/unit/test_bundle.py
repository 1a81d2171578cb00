from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgeopt import acceptance, device, wire
from edgeopt.calibrate.samples import open_samples
from edgeopt.cli import main, tables
from edgeopt.errors import BadBundle, UnsupportedTarget
from edgeopt.layout import BUNDLE_FILE, CHECKSUMS_FILE
from edgeopt.orders import JobOrder, Source, StagedFiles
from edgeopt.policy import Goal, Policy, Search, TargetRequest, WorkerLimits
from edgeopt.records import (
    Artifact,
    DataOrigin,
    EngineFacts,
    Interval,
    Latency,
    Measurement,
    Quality,
    Recipe,
    Signature,
    StatePair,
    Step,
    Target,
    TensorSpec,
    Trial,
)
from edgeopt.stages import bundle, bundling
from edgeopt.stages.bundle import Bundle
from edgeopt.stages.bundling import Prepared
from edgeopt.stages.reference import Reference
from tests.bundles import members, packed

ORIGIN = DataOrigin(sha256="0" * 64, samples=4, origin="drop")
TARGET = Target(name="cpu", device="here", arch="x86_64", features=("avx2",), threads=2, memory_bytes=1 << 30)
FLOAT = TensorSpec(name="x", dtype="float32", shape=(1, 3))


class Inputs:
    """Four samples of two inputs, the second of a type that .npy has no name for."""

    def __init__(self, labels: np.ndarray | None = None) -> None:
        self.origin, self.labels = ORIGIN, labels

    def __len__(self) -> int:
        return 4

    def feeds(self, index: int) -> dict[str, np.ndarray]:
        half = np.full((1, 2), index + 0.5, ml_dtypes.bfloat16)
        return {"x": np.full((1, 3), index, np.float32), "half": half}


def _reference(
    folder: Path, *, samples: Inputs | None = None, indices: tuple[int, ...] = (0, 1, 2, 3), states: bool = False
) -> Reference:
    half = TensorSpec(name="half", dtype="bfloat16", shape=(1, 2))
    pairs = (StatePair(input="x", output="y"),) if states else ()
    signature = Signature(format="onnx", opset=17, inputs=(FLOAT, half), outputs=(), operators=(), states=pairs)
    held = samples or Inputs()
    return Reference(
        signature=signature, samples=held, indices=indices, forms=(), file=folder / "frames", origin=held.origin
    )


def _artifact(folder: Path, name: str, content: bytes) -> Artifact:
    path = folder / name / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Artifact(
        path=str(path), format="onnx", sha256="", bytes=len(content), runtime="r", runtime_version="1", session=()
    )


def _trial(folder: Path, name: str, content: bytes, *, bound: float = 0.001, traffic: float | None = None) -> Trial:
    gain = 3.0 if traffic is None else traffic
    measurement = Measurement(
        latency=Latency(p50_ms=1.0, p90_ms=1.0, p99_ms=1.0),
        speedup=Interval(value=gain, low=gain, high=gain),
        bytes=len(content),
        bytes_ratio=1.0,
        peak_memory_bytes=1,
        memory_ratio=1.0,
        quality=Quality(kind="agreement", metric="nsr", value=1 / 3, drop=bound / 2, ci95=(0.0, bound), samples=4),
        measured=traffic is None,
    )
    return Trial(
        recipe=Recipe(steps=(Step.of(name),)), artifact=_artifact(folder, name, content), measurement=measurement
    )


def _prepared(folder: Path, *trials: Trial, goal: Goal | None = None) -> Prepared:
    source = Source(file="net.onnx", format="onnx", sha256="1" * 64, bytes=8)
    order = JobOrder(
        job_id="j",
        name="net",
        source=source,
        files=StagedFiles(model="model.onnx"),
        policy=Policy(),
        limits=WorkerLimits(),
    )
    return Prepared(
        order=order,
        target=TARGET,
        calibration=ORIGIN,
        reference=_reference(folder),
        baseline=_artifact(folder, "original", b"original"),
        trials=trials,
        goal=goal or Goal(),
        harmless={Recipe(steps=(Step.of("tidy"),)).id},
    )


def _written(prepared: Prepared, folder: Path) -> Bundle:
    (folder / "out").mkdir(exist_ok=True)
    return bundling.write(prepared, folder / "out", scratch=folder / "work")


def _order(made: Bundle) -> list[str]:
    return [candidate.recipe.label for candidate in made.candidates]


# ---------------------------------------------------------------- what goes in, and in which order
def test_only_what_is_right_goes_along_and_the_original_always(tmp_path: Path) -> None:
    right, wrong = _trial(tmp_path, "tidy", b"tidied"), _trial(tmp_path, "wrong", b"wrong", bound=0.5)
    refused = Trial(recipe=Recipe(steps=(Step.of("refused"),)), refused="it broke")
    made = _written(_prepared(tmp_path, wrong, right, refused), tmp_path)
    assert [(each.recipe.label, each.lossless) for each in made.candidates] == [("tidy", True)]
    with zipfile.ZipFile(tmp_path / "out" / "net.edgeopt") as archive:
        held = [archive.read(name) for name in archive.namelist() if name.startswith("candidates/")]
    assert sorted(held) == [b"original", b"tidied"]


def test_the_same_bytes_go_along_once(tmp_path: Path) -> None:
    trials = [_trial(tmp_path, name, content) for name, content in (("a", b"same"), ("b", b"same"), ("c", b"original"))]
    assert _order(_written(_prepared(tmp_path, *trials), tmp_path)) == ["a"]


def test_candidates_keep_the_planned_order_unless_bytes_say_better(tmp_path: Path) -> None:
    planned = [_trial(tmp_path, name, content) for name, content in (("a", b"22"), ("b", b"333"), ("c", b"1"))]
    assert _order(_written(_prepared(tmp_path, *planned), tmp_path)) == ["a", "b", "c"]
    assert _order(_written(_prepared(tmp_path, *planned, goal=Goal(objective="size")), tmp_path)) == ["c", "a", "b"]
    moved = [
        _trial(tmp_path, name, name.encode(), traffic=ratio) for name, ratio in (("a", 1.5), ("b", 2.5), ("c", 2.0))
    ]
    made = _written(_prepared(tmp_path, *moved), tmp_path)
    assert _order(made) == ["b", "c", "a"]
    assert [each.traffic_ratio for each in made.candidates] == [2.5, 2.0, 1.5]


def test_a_teacher_goes_along_and_offers_itself_as_no_candidate(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes(b"teacher")
    made = _written(replace(_prepared(tmp_path), teacher=teacher), tmp_path)
    assert made.candidates == ()
    assert made.teacher is not None
    with zipfile.ZipFile(tmp_path / "out" / "net.edgeopt") as archive:
        assert archive.read(f"candidates/{made.teacher}/model.onnx") == b"teacher"


def test_an_engine_is_left_behind_and_its_model_goes_along(tmp_path: Path) -> None:
    trial = _trial(tmp_path, "a", b"model", traffic=2.0)
    assert trial.artifact is not None
    facts = EngineFacts(key="k", gpus=("SM86",), build_s=1.0)
    engine = replace(trial.artifact, path=str(tmp_path / "a" / "model.engine"), format="tensorrt-engine", engine=facts)
    (tmp_path / "a" / "model.engine").write_bytes(b"engine")
    _written(_prepared(tmp_path, replace(trial, artifact=engine)), tmp_path)
    with zipfile.ZipFile(tmp_path / "out" / "net.edgeopt") as archive:
        assert not [name for name in archive.namelist() if archive.read(name) == b"engine"]


# ---------------------------------------------------------------- the archive
def test_the_archive_holds_nothing_of_when_and_how_fast_it_was_made(tmp_path: Path) -> None:
    trial = _trial(tmp_path, "a", b"a")
    assert trial.measurement is not None
    slower = replace(
        trial, measurement=replace(trial.measurement, speedup=Interval(value=1.1, low=1.0, high=1.2)), seconds=9
    )
    _written(_prepared(tmp_path, trial), tmp_path)
    first = (tmp_path / "out" / "net.edgeopt").read_bytes()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.touch()
    _written(_prepared(tmp_path, slower), tmp_path)
    assert (tmp_path / "out" / "net.edgeopt").read_bytes() == first


def test_the_archive_is_plain_and_every_member_is_listed(tmp_path: Path) -> None:
    _written(_prepared(tmp_path, _trial(tmp_path, "a", b"a")), tmp_path)
    with zipfile.ZipFile(tmp_path / "out" / "net.edgeopt") as archive:
        entries = archive.infolist()
        listed = [line.split("  ")[1] for line in archive.read(CHECKSUMS_FILE).decode().splitlines()]
        document = json.loads(archive.read(BUNDLE_FILE))
    assert [entry.filename for entry in entries[:2]] == [BUNDLE_FILE, CHECKSUMS_FILE]
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert sorted(listed) == sorted(entry.filename for entry in entries if entry.filename != CHECKSUMS_FILE)
    assert document["bundle"] == 1
    assert document == json.loads((tmp_path / "out" / BUNDLE_FILE).read_text())


# ---------------------------------------------------------------- samples
def test_samples_come_back_as_they_were_whatever_their_type(tmp_path: Path) -> None:
    judged = _reference(tmp_path, samples=Inputs(np.asarray([3, 1, 2, 0])), indices=(0, 2, 3))
    contents = bundling._samples(judged, tmp_path / "work")
    folder = tmp_path / "work" / "samples"
    labels = contents.pop("samples/labels.npy")
    assert isinstance(labels, bytes)
    (folder / "labels.npy").write_bytes(labels)
    found = open_samples(folder, judged.signature, unpack_to=tmp_path / "unpacked")
    assert len(found) == len(contents) == 3
    assert found.labels is not None
    assert found.labels.tolist() == [3, 2, 0]
    for position, index in enumerate(judged.indices):
        for name, array in judged.samples.feeds(index).items():
            assert found.feeds(position)[name].dtype == array.dtype
            assert np.array_equal(found.feeds(position)[name], array)


@pytest.mark.parametrize(("states", "chosen"), [(False, [0.0, 3.0]), (True, [0.0, 1.0])])
def test_large_samples_are_thinned_out_and_sequences_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: bool, chosen: list[float]
) -> None:
    monkeypatch.setattr(bundling, "MOST_SAMPLE_BYTES", 2 * (3 * 4 + 2 * 2))
    contents = bundling._samples(_reference(tmp_path, states=states), tmp_path)
    assert list(contents) == ["samples/00000.npz", "samples/00001.npz"]
    with np.load(tmp_path / "samples" / "00000.npz") as first, np.load(tmp_path / "samples" / "00001.npz") as second:
        assert [float(each["x"][0, 0]) for each in (first, second)] == chosen


# ---------------------------------------------------------------- reading
def _document(tmp_path: Path, made: Bundle, **changes: object) -> Path:
    path = tmp_path / BUNDLE_FILE
    path.write_text(json.dumps({"bundle": 1, **wire.encode(made), **changes}))
    return path


def test_a_document_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = _written(_prepared(tmp_path, _trial(tmp_path, "a", b"a")), tmp_path)
    assert bundle.read(tmp_path / "out" / BUNDLE_FILE) == made


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"bundle": 1}', '"\\ud800"'])
def test_a_document_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / BUNDLE_FILE).write_text(text)
    with pytest.raises(BadBundle, match="cannot be read by edgeopt") as caught:
        bundle.read(tmp_path / BUNDLE_FILE)
    assert caught.value.hint


def test_a_document_with_fields_of_another_release_is_refused(tmp_path: Path) -> None:
    made = _written(_prepared(tmp_path), tmp_path)
    with pytest.raises(BadBundle, match=r"unknown fields \['colour'\]"):
        bundle.read(_document(tmp_path, made, colour="blue"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("goal", "max_drop", 2.0),
        ("goal", "max_drop", float("nan")),
        ("goal", "min_speedup", -1.0),
        ("search", "seed", -1),
    ],
)
def test_wishes_that_no_configuration_may_hold_are_refused(
    tmp_path: Path, section: str, key: str, value: float
) -> None:
    made = _written(_prepared(tmp_path), tmp_path)
    policy = wire.encode(made.policy)
    policy[section][key] = value
    with pytest.raises(BadBundle, match="cannot be read by edgeopt"):
        bundle.read(_document(tmp_path, made, policy=policy))


def test_a_recipe_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    made = _written(_prepared(tmp_path, _trial(tmp_path, "a", b"a")), tmp_path)
    odd = Recipe(steps=(Step.of("quantize_static", skip="[1, 2"),))
    with pytest.raises(BadBundle, match="cannot be read by edgeopt"):
        bundle.read(_document(tmp_path, replace(made, candidates=(replace(made.candidates[0], recipe=odd),))))


@pytest.mark.parametrize("address", ["0" * 64, "../../../etc", "", ".", "a/b"])
def test_a_model_is_looked_for_under_its_address_only(tmp_path: Path, address: str) -> None:
    (tmp_path / "candidates").mkdir()
    with pytest.raises(BadBundle, match="which it does not hold"):
        bundle.model_in(tmp_path, address)


# ---------------------------------------------------------------- accepting
@pytest.mark.parametrize(
    ("name", "arch", "here"),
    [
        ("arm", "aarch64", "x86_64"),
        ("cpu", "aarch64", "x86_64"),
        ("cpu", "x86_64", "aarch64"),
        ("arm", "armv7l", "x86_64"),
    ],
)
def test_a_bundle_for_another_processor_is_refused_with_both_names(
    tmp_path: Path, name: str, arch: str, here: str
) -> None:
    made = replace(_written(_prepared(tmp_path), tmp_path), target=replace(TARGET, name=name, arch=arch))
    host = device.Host(proc=tmp_path, sys=tmp_path, machine=here)
    with pytest.raises(UnsupportedTarget, match=rf"prepared for {name} \({arch}\).*\({here}\)") as caught:
        acceptance.runtime_for(made, device.detect(TargetRequest(), host=host), host=host)
    assert "--target" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "arch", "here"), [("arm", "aarch64", "aarch64"), ("arm", "aarch64", "armv7l"), ("cpu", "x86_64", "x86_64")]
)
def test_a_bundle_for_such_a_processor_is_served_by_onnxruntime(
    tmp_path: Path, name: str, arch: str, here: str
) -> None:
    made = replace(_written(_prepared(tmp_path), tmp_path), target=replace(TARGET, name=name, arch=arch))
    host = device.Host(proc=tmp_path, sys=tmp_path, machine=here)
    found = acceptance.runtime_for(made, device.detect(TargetRequest(name=name), host=host), host=host)  # type: ignore[arg-type]
    assert found.name == "onnxruntime"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_bundle_for_a_gpu_is_refused_where_there_is_none(tmp_path: Path, name: str) -> None:
    made = replace(_written(_prepared(tmp_path), tmp_path), target=replace(TARGET, name=name))
    host = device.Host(proc=tmp_path, sys=tmp_path, dev=tmp_path, machine="x86_64")
    with pytest.raises(UnsupportedTarget, match=f"prepared for {name} .*no NVIDIA GPU here"):
        acceptance.runtime_for(made, made.target, host=host)


def test_goal_and_seed_are_the_bundles_and_threads_and_budget_the_devices(tmp_path: Path) -> None:
    there = Policy(goal=Goal(max_drop=0.05), search=Search(seed=7, budget_s=9999.0, trials=3), teacher="big.onnx")
    here = Policy(target=TargetRequest(threads=3), search=Search(seed=1, budget_s=60.0), goal=Goal(max_drop=0.5))
    made = replace(_written(_prepared(tmp_path), tmp_path), policy=there)
    order = replace(_prepared(tmp_path).order, policy=here)
    found = bundle.with_policy(order, made).policy
    assert (found.goal.max_drop, found.search.seed, found.search.trials) == (0.05, 7, None)
    assert (found.target.threads, found.search.budget_s, found.teacher) == (3, 60.0, None)


# ---------------------------------------------------------------- telling
def test_the_command_line_shows_rank_bytes_and_no_latency(tmp_path: Path) -> None:
    trials = [_trial(tmp_path, "a", b"a" * 2048, traffic=2.0), _trial(tmp_path, "b", b"b" * 1024, traffic=1.0)]
    made = _written(_prepared(tmp_path, *trials), tmp_path)
    rows = tables.bundle_rows(wire.encode(made))
    assert rows == [
        ("1", "a", "2.0 KiB", "nsr 0.3333, drop 0.0005 [0.0000, 0.0010]", "2.00"),
        ("2", "b", "1.0 KiB", "nsr 0.3333, drop 0.0005 [0.0000, 0.0010]", "1.00"),
    ]
    assert all(len(row) == len(tables.BUNDLE_COLUMNS) for row in rows)


def test_inspect_tells_what_a_bundle_says_without_opening_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _written(_prepared(tmp_path, _trial(tmp_path, "a", b"no model at all")), tmp_path)
    assert main.main(["inspect", str(tmp_path / "out" / "net.edgeopt")]) == 0
    said = capsys.readouterr().out
    assert "from        net.onnx (sha256 111111111111)" in said
    assert "cpu (x86_64), not timed for any device" in said
    assert main.main(["inspect", "--json", str(tmp_path / "out" / "net.edgeopt")]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["recipe"]["steps"][0]["technique"] == "a"


def test_channels_of_a_bundle_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.edgeopt").write_bytes(b"")
    assert main.main(["inspect", "--channels", str(tmp_path / "net.edgeopt")]) != 0
    assert "nothing in a bundle is opened" in capsys.readouterr().err


@pytest.mark.parametrize("document", [b"{}", b"[]", b"[" * 100_000, b'{"source": 1, "target": []}'])
def test_inspect_refuses_a_document_that_says_nothing(
    tmp_path: Path, document: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.edgeopt").write_bytes(packed(members(document)))
    assert main.main(["inspect", str(tmp_path / "net.edgeopt")]) == 1
    assert "the bundle's" in capsys.readouterr().err
