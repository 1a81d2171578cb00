"""What a drop leaves behind in the inbox once its job is over, and what must stay there."""

from __future__ import annotations

import json
from pathlib import Path

from inbox import (
    external_model,
    model_bytes,
    names_in,
    only_drop,
    take,
)

from edgeopt import wire
from edgeopt.daemon import drops, intake
from edgeopt.daemon.intake import stage
from edgeopt.daemon.scan import Stamp, scan
from edgeopt.policy import Policy, WorkerLimits


def test_a_file_that_was_replaced_stays_as_a_new_drop(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    (inbox / "a.yaml").write_text("{}")
    staged = take(inbox)
    (inbox / "new").write_bytes(model_bytes(1))
    (inbox / "new").rename(inbox / "a.onnx")
    assert intake.remove_drop(staged.drop, staged.stamps) == ("a.onnx",)
    assert (inbox / "a.onnx").read_bytes() == model_bytes(1)
    assert not (inbox / "a.yaml").exists()


def test_removing_twice_is_fine_and_never_takes_the_inbox(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    staged = take(inbox)
    for _ in range(2):
        assert intake.remove_drop(staged.drop, staged.stamps) == ()
    assert inbox.is_dir()


def test_what_to_remove_survives_a_restart_as_json(inbox: Path) -> None:
    (inbox / "\udcff.onnx").write_bytes(model_bytes())
    staged = take(inbox)
    stamps = {path: wire.decode(Stamp, stamp) for path, stamp in json.loads(wire.dumps(staged.stamps)).items()}
    assert intake.remove_drop(wire.loads(drops.Drop, wire.dumps(staged.drop)), stamps) == ()
    assert list(inbox.iterdir()) == []


def test_a_data_file_of_two_models_leaves_with_the_last_of_them(inbox: Path) -> None:
    (inbox / "w.data").write_bytes(bytes(16))
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "b.onnx").write_bytes(external_model(offset="0"))
    (inbox / "c.onnx").write_bytes(model_bytes())
    found = {drop.name: drop for drop in drops.group(scan(inbox))}
    staged = {
        name: stage(drop, staging_root=inbox.parent / "s", policy=Policy(), limits=WorkerLimits())
        for name, drop in found.items()
    }
    intake.remove_drop(staged["a"].drop, staged["a"].stamps)
    assert (inbox / "w.data").exists()
    intake.remove_drop(staged["b"].drop, staged["b"].stamps)
    assert names_in(inbox) == ["c.onnx"]


def test_a_drop_that_cannot_be_read_still_has_a_name_and_a_hash(inbox: Path) -> None:
    (inbox / "a b.onnx").symlink_to("/etc/shadow")
    identity = intake.identify(only_drop(inbox))
    assert identity.name.startswith("a-b-")
    assert len(identity.sha256) == 64
    (inbox / "a b.onnx").unlink()
    (inbox / "c.onnx").write_bytes(b"garbage")
    assert intake.identify(only_drop(inbox)).name == "c"
