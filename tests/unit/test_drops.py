from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt import wire
from edgeopt.daemon import drops
from edgeopt.daemon.drops import Drop
from edgeopt.daemon.names import escaped, is_waiting, slug
from edgeopt.daemon.scan import Found, Kind, Listing, Stamp

SHA = "0123456789abcdef" * 4


def test_a_model_takes_its_siblings_along() -> None:
    (drop,) = group("a.onnx", "a.yaml", "a.calibration.npz", "a.eval.npz", "b.yaml", "README.txt", "a.onnx.data")
    assert (drop.name, drop.model, drop.job_file) == ("a", "a.onnx", "a.yaml")
    assert (drop.calibration, drop.eval) == ("a.calibration.npz", "a.eval.npz")
    assert set(drop.entries) == {"a.onnx", "a.yaml", "a.calibration.npz", "a.eval.npz"}


def test_a_folder_with_a_model_is_one_drop() -> None:
    (drop,) = group(
        "a/", "a/model.onnx", "a/job.yaml", "a/calibration/", "a/calibration/1.png", "a/eval.npz", "a/notes.txt"
    )
    assert (drop.name, drop.model, drop.job_file) == ("a", "a/model.onnx", "a/job.yaml")
    assert (drop.calibration, drop.eval, drop.entries) == ("a/calibration", "a/eval.npz", ("a",))
    assert "a/notes.txt" in drop.members
    assert "a" in drop.members


@pytest.mark.parametrize("name", [".a.onnx", "a.onnx.tmp", "a.onnx.part", "a.onnx.partial", "~a.onnx", "a.onnx~"])
def test_a_name_that_says_unfinished_waits(name: str) -> None:
    assert is_waiting(name)
    assert group(name) == []
    assert group(name + "/", name + "/model.onnx") == []


def test_an_unfinished_sidecar_holds_its_model_back_but_is_not_taken() -> None:
    (drop,) = group("a.onnx", "a.eval.npz.part", ".a.calibration.npz.Xy7", "b.eval.npz.part")
    assert set(drop.waits_for) == {"a.onnx", "a.eval.npz.part", ".a.calibration.npz.Xy7"}
    assert drop.members == ("a.onnx",)


def test_a_sidecar_whose_model_has_not_come_stays() -> None:
    assert group("a.yaml", "a.eval.npz", "README.txt", "weights.bin", "a/", "a/job.yaml") == []


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pickle", "a.h5", "a.pt2", "a.ts", "A.ONNX"])
def test_whatever_claims_to_be_a_model_is_a_drop(name: str) -> None:
    assert [drop.model for drop in group(name)] == [name]


def test_of_two_models_with_one_stem_the_onnx_file_gets_the_sidecars() -> None:
    pt, onnx = sorted(group("a.pt", "a.onnx", "a.yaml"), key=lambda drop: drop.path, reverse=True)
    assert (onnx.job_file, pt.job_file) == ("a.yaml", None)


def test_links_and_fifos_with_a_models_name_are_drops_to_be_refused() -> None:
    assert [drop.path for drop in group("a.onnx", kind="symlink")] == ["a.onnx"]
    assert [drop.path for drop in group("a.onnx", kind="fifo")] == ["a.onnx"]


def test_a_linked_folder_is_a_drop_to_be_refused() -> None:
    (drop,) = group("a", kind="symlink")
    assert drop.problem == "linked-folder"
    assert group("a.txt", kind="symlink") == []


def test_a_folder_of_several_models_without_a_main_one_is_a_problem() -> None:
    (drop,) = group("a/", "a/x.onnx", "a/y.onnx")
    assert drop.problem == "several-models"
    (main,) = group("a/", "a/model.onnx", "a/teacher.onnx")
    assert (main.problem, main.model) == (None, "a/model.onnx")
    (lone,) = group("a/", "a/resnet.onnx")
    assert (lone.problem, lone.model) == (None, "a/resnet.onnx")


@pytest.mark.parametrize(
    "name", ["a b.onnx", "a\nb.onnx", "-rf.onnx", "ü.onnx", "\u202egnp.onnx", "\udcff.onnx", "a" * 250 + ".onnx"]
)
def test_a_drop_with_any_name_survives_the_wire(name: str) -> None:
    (drop,) = group(name)
    assert wire.loads(Drop, wire.dumps(drop)) == drop


@pytest.mark.parametrize("name", ["digits", "a.b_c-1", "A" * 64])
def test_a_plain_name_stays_itself(name: str) -> None:
    assert slug(name, SHA) == name


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("a b", "a-b-01234567"),
        ("a\n", "a-01234567"),
        ("-rf", "rf-01234567"),
        ("..", "model-01234567"),
        (".", "model-01234567"),
        ("", "model-01234567"),
        (".hidden", "hidden-01234567"),
        ("模型", "model-01234567"),
        ("../../etc/passwd", "etc-passwd-01234567"),
        ("<b>&\"'", "b-01234567"),
        ("A" * 65, "A" * 55 + "-01234567"),
    ],
)
def test_an_odd_name_becomes_a_slug_with_the_contents_hash(name: str, public: str) -> None:
    assert slug(name, SHA) == public


def test_an_escaped_name_is_one_ascii_line() -> None:
    assert escaped("a\nb\u202e\udcffü\\") == "a\\nb\\u202e\\udcff\\xfc\\\\"


def group(*paths: str, kind: Kind = "file") -> list[Drop]:
    found = [
        Found(path.rstrip("/"), "dir" if path.endswith("/") else kind, Stamp(number, 1, 1))
        for number, path in enumerate(paths)
    ]
    return drops.group(Listing(root=Path("/inbox"), found=tuple(sorted(found, key=lambda entry: entry.path))))
