"""Versions that no longer hold, in a real daemon: found, made anew out of the kept source, served meanwhile by the last good one.

The worker is the fake one, whose ``genuine`` publishes a model that really runs; smoke tests run in the real probe. Another
version of the runtime is a folder of package metadata on PYTHONPATH, which daemon and workers read alike.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeopt.daemon import marks, shelf
from edgeopt.daemon.marks import Mark
from edgeopt.fingerprint import installed
from tests.integration.daemon import Daemon
from tests.published import check_whole, versions

STALE = 'edgeopt_artifact_stale{model="m",reason="%s"}'


def publish(daemon: Daemon, behaviour: str = "genuine", *, seed: int = 0, number: int = 1) -> None:
    daemon.drop("m", behaviour, seed=seed)
    daemon.wait_for_state("published", number)
    daemon.wait(lambda: daemon.waiting() == [])


def runtime_of(daemon: Daemon, version: int) -> str:
    manifest = json.loads((daemon.published / "m" / str(version) / "manifest.json").read_text())
    return str(manifest["artifact"]["runtime_version"])


def current(daemon: Daemon) -> int:
    return shelf.read(daemon.published, "m").current


def manifest_of(daemon: Daemon, version: int) -> dict[str, Any]:
    return check_whole(daemon.published / "m" / str(version))


def test_runtime_upgrade_makes_every_version_stale_and_they_heal_while_the_old_one_serves(
    daemon: Daemon, in_memory: Path
) -> None:
    package = in_memory / "older" / "onnxruntime-0.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 0.9\n")
    daemon.environment = {"PYTHONPATH": str(package.parent)}
    daemon.start()
    publish(daemon)
    assert (runtime_of(daemon, 1), daemon.metric(STALE % "runtime")) == ("0.9", 0)
    assert daemon.stop() == 0

    daemon.environment = {}
    daemon.start()
    daemon.wait(lambda: daemon.metric(STALE % "runtime") == 1)
    daemon.wait(lambda: daemon.jobs("running"))
    # the last good one serves, and reads whole, while the job runs
    assert current(daemon) == 1
    manifest_of(daemon, 1)
    daemon.wait(lambda: daemon.metric(STALE % "runtime") == 0)
    assert current(daemon) == 2
    manifest = manifest_of(daemon, 2)
    assert manifest["healed"] == {"version": 1, "reasons": ["runtime"], "same_artifact": True}
    assert runtime_of(daemon, 2) == installed("onnxruntime")
    assert STALE % "runtime" in daemon.get("/metrics")[1], "the series falls to 0, it does not go away"
    assert f"onnxruntime: 0.9 then, {installed('onnxruntime')} now" in daemon.said()
    # and it is over: dropping the same content again names the healed version
    daemon.drop("m", "genuine")
    (duplicate,) = daemon.wait_for_state("duplicate")
    assert duplicate["version"] == 2


def test_flipped_bit_is_found_and_led_away_from_and_the_version_made_anew(daemon: Daemon) -> None:
    daemon.start()
    publish(daemon, "publish", seed=1)
    publish(daemon, "publish", seed=2, number=2)
    daemon.stop()
    file = daemon.published / "m" / "2" / "model.onnx"
    flip(file)
    daemon.start()
    daemon.wait(lambda: "version-bad" in daemon.said())
    assert "model=m version=2" in daemon.said()
    daemon.wait(lambda: current(daemon) == 3)
    daemon.wait(lambda: daemon.metric(STALE % "damaged") == 0)
    manifest = manifest_of(daemon, 3)
    assert manifest["healed"]["reasons"] == ["damaged"]
    assert manifest["source"] == json.loads((daemon.published / "m/2/manifest.json").read_text())["source"]
    # nothing was deleted: the damaged one stays for a look, marked
    assert versions(daemon.published / "m") == [1, 2, 3]
    assert shelf.read(daemon.published, "m").bad == (2,)
    flip(file)
    daemon.stop()
    daemon.start()
    daemon.wait(lambda: "version-whole-again" in daemon.said())
    assert shelf.read(daemon.published, "m").bad == ()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


def test_version_that_does_not_run_is_retreated_from_at_once_and_its_drop_refused(daemon: Daemon) -> None:
    daemon.start()
    publish(daemon, "publish", seed=1)
    daemon.drop("m", "broken", seed=2)
    daemon.wait_for_state("rejected")
    daemon.wait(lambda: list(daemon.rejected.glob("m@*-1")))
    assert "version 2 was published and it does not run" in daemon.reason("m@*-1")["message"]
    assert current(daemon) == 1
    assert daemon.metric(STALE % "smoke") == 1
    publish(daemon, "publish", seed=3, number=2)
    assert current(daemon) == 3
    assert daemon.metric(STALE % "smoke") == 0


def test_what_has_no_kept_source_is_reported_and_goes_on_serving(daemon: Daemon) -> None:
    daemon.start()
    publish(daemon, "publish")
    daemon.stop()
    shutil.rmtree(daemon.state / "sources")
    flip(daemon.published / "m" / "1" / "model.onnx")
    daemon.start()
    daemon.wait(lambda: "no-source-to-heal-from" in daemon.said())
    assert (current(daemon), daemon.metric(STALE % "damaged")) == (1, 1)
    # dropped again, it is new work, although the content is known
    publish(daemon, "publish")
    daemon.wait(lambda: current(daemon) == 2)
    daemon.wait(lambda: daemon.metric(STALE % "damaged") == 0)


def test_version_that_nobody_tried_because_of_a_crash_is_tried_after_the_start(daemon: Daemon) -> None:
    daemon.start()
    publish(daemon, "publish")
    daemon.kill()
    home = daemon.published / "m"
    marks.put(home, 1, Mark(kind=marks.UNTRIED))
    daemon.start()
    daemon.wait(lambda: shelf.read(daemon.published, "m").marks == {})
    assert current(daemon) == 1
