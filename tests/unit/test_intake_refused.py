"""Drops that intake refuses: as what, how soon, and that nothing is left in the staging folder or lost from the inbox."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from inbox import (
    Prepare,
    all_of,
    external_model,
    model_bytes,
    npz_bytes,
    take,
    with_teacher,
    written,
)

from edgeopt.daemon.intake import NotReady, Patience
from edgeopt.errors import (
    BadData,
    BadJobFile,
    EdgeoptError,
    EmptyFile,
    ForbiddenFormat,
    MissingExternalData,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsafeReference,
    UnsupportedModel,
)
from edgeopt.policy import WorkerLimits

BAD: dict[str, tuple[Prepare, type[EdgeoptError]]] = {
    "empty": (written(b""), EmptyFile),
    "text": (written(b"this is no model\n"), NotAModel),
    "truncated": (written(model_bytes()[:-30]), TruncatedModel),
    "pickle named onnx": (written(pickle.dumps([1])), ForbiddenFormat),
    "pickle named pt": (written(pickle.dumps([1]), "a.pt"), ForbiddenFormat),
    "model named pth": (written(model_bytes(), "a.pth"), ForbiddenFormat),
    "exported program": (written(b"PK", "a.pt2"), UnsupportedModel),
    "keras": (written(b"x", "a.h5"), UnsupportedModel),
    "fifo": (lambda inbox: os.mkfifo(inbox / "a.onnx"), UnsafeFile),
    "symlink": (lambda inbox: (inbox / "a.onnx").symlink_to("/etc/passwd"), UnsafeFile),
    "dangling symlink": (lambda inbox: (inbox / "a.onnx").symlink_to("nowhere"), UnsafeFile),
    "linked folder": (lambda inbox: (inbox / "a").symlink_to("/etc"), UnsafeFile),
    "hard link": (
        all_of(written(model_bytes(), "b.bin"), lambda inbox: os.link(inbox / "b.bin", inbox / "a.onnx")),
        UnsafeFile,
    ),
    "missing data": (written(external_model()), MissingExternalData),
    "traversing data": (written(external_model("../secret")), UnsafeReference),
    "absolute data": (written(external_model("/etc/passwd")), UnsafeReference),
    "nul in location": (written(external_model("w.data\0x")), UnsafeReference),
    "memory marker": (written(external_model("*/_ORT_MEM_ADDR_/*")), UnsafeReference),
    "data is the model": (written(external_model("model.onnx")), UnsafeReference),
    "data is a sidecar": (written(external_model("a.yaml")), UnsafeReference),
    "unknown key": (written(external_model("w.data", basepath="/")), UnsafeReference),
    "short data": (all_of(written(external_model(length="99")), written(bytes(16), "w.data")), TruncatedModel),
    "linked data": (
        all_of(written(external_model()), lambda inbox: (inbox / "w.data").symlink_to("/etc/passwd")),
        UnsafeFile,
    ),
    "hard-linked data": (
        all_of(
            written(external_model()), written(bytes(16), "v"), lambda inbox: os.link(inbox / "v", inbox / "w.data")
        ),
        UnsafeFile,
    ),
    "data behind a link": (
        all_of(
            lambda inbox: (inbox / "a").mkdir(),
            written(external_model("d/passwd"), "a/model.onnx"),
            lambda inbox: (inbox / "a" / "d").symlink_to("/etc"),
        ),
        UnsafeFile,
    ),
    "data is a folder": (all_of(written(external_model()), lambda inbox: (inbox / "w.data").mkdir()), UnsafeFile),
    "no npz": (all_of(written(model_bytes()), written(b"x" * 99, "a.eval.npz")), BadData),
    "empty npz": (all_of(written(model_bytes()), written(b"", "a.eval.npz")), EmptyFile),
    "pickled npz": (
        all_of(written(model_bytes()), written(npz_bytes(x=np.array([{}], dtype=object)), "a.calibration.npz")),
        ForbiddenFormat,
    ),
    "huge job file": (all_of(written(model_bytes()), written(b"#" * 70_000, "a.yaml")), BadJobFile),
    "no teacher there": (with_teacher(model_bytes(1), name="a/other.onnx"), BadJobFile),
    "teacher is the model": (with_teacher(model_bytes(1), b"teacher: model.onnx\n"), BadJobFile),
    "teacher of a pickle": (with_teacher(pickle.dumps([1])), ForbiddenFormat),
    "truncated teacher": (with_teacher(model_bytes(1)[:-30]), TruncatedModel),
    "teacher with data": (with_teacher(external_model()), BadJobFile),
    "teacher of another format": (with_teacher(b"PK", b"teacher: big.pt2\n", "a/big.pt2"), BadJobFile),
    "teacher of a plain file": (
        all_of(written(model_bytes()), written(b"teacher: b.npz\n", "a.yaml")),
        BadJobFile,
    ),
    "linked teacher": (
        all_of(
            with_teacher(b"", name="a/x"),
            lambda inbox: (inbox / "a" / "big.onnx").symlink_to("/etc/passwd"),
        ),
        UnsafeFile,
    ),
    "linked job file": (
        all_of(written(model_bytes()), lambda inbox: (inbox / "a.yaml").symlink_to("/etc/passwd")),
        UnsafeFile,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason_and_nothing_is_left_or_lost(inbox: Path, case: str) -> None:
    prepare, error = BAD[case]
    prepare(inbox)
    before = sorted((path, path.lstat().st_ino) for path in inbox.rglob("*"))
    with pytest.raises(error) as caught:
        take(inbox)
    assert type(caught.value) is error
    assert caught.value.message
    assert caught.value.hint.endswith(".")
    assert not (inbox.parent / "staging").exists() or not list((inbox.parent / "staging").iterdir())
    assert sorted((path, path.lstat().st_ino) for path in inbox.rglob("*")) == before


def test_a_fifo_inside_a_folder_drop_is_unsafe(inbox: Path) -> None:
    (inbox / "a").mkdir()
    (inbox / "a" / "model.onnx").write_bytes(model_bytes())
    os.mkfifo(inbox / "a" / "pipe")
    with pytest.raises(UnsafeFile):
        take(inbox)


def test_a_model_over_the_limit_is_too_large_before_it_is_copied(inbox: Path) -> None:
    with (inbox / "a.onnx").open("wb") as file:
        file.truncate(1 << 43)  # sparse: 8 TiB that take no space
    with pytest.raises(TooLarge):
        take(inbox)


def test_external_data_counts_towards_the_limit(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(5000))
    with pytest.raises(TooLarge):
        take(inbox, limits=WorkerLimits(model_bytes=4000))


@pytest.mark.parametrize("case", ["empty", "truncated", "missing data", "short data", "no npz", "empty npz"])
def test_what_looks_broken_is_waited_for_while_it_is_young(inbox: Path, case: str) -> None:
    prepare, error = BAD[case]
    prepare(inbox)
    with pytest.raises(NotReady) as caught:
        take(inbox, patience=Patience(quiet_for=lambda _path: 29.0, grace_s=30.0))
    assert 0 < caught.value.retry_s <= 5.0
    with pytest.raises(error):
        take(inbox, patience=Patience(quiet_for=lambda _path: 30.0, grace_s=30.0, writer_grace_s=30.0))


def test_what_is_hopeless_is_refused_however_young(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(pickle.dumps([1]))
    with pytest.raises(ForbiddenFormat):
        take(inbox, patience=Patience(quiet_for=lambda _path: 0.0))
