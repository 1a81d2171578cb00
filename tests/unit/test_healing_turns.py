"""When what is made anew: days on a fake clock, conditions that change under the daemon, drops that come first."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeopt.config.schema import Config
from edgeopt.daemon import publish, sources
from edgeopt.daemon.healing import DAY_S, Healing
from edgeopt.daemon.house import Folders, House
from edgeopt.daemon.jobs import QUEUED, Job, JobStore
from edgeopt.daemon.logs import Log
from edgeopt.daemon.mailbox import Hands, Mailbox
from edgeopt.daemon.metrics import Metrics
from edgeopt.daemon.models import Models
from edgeopt.daemon.neighbour import REASONS
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.publish import Origin
from edgeopt.fingerprint import Fingerprint
from tests.inbox import model_bytes, take
from tests.published import out_folder


@dataclass
class Bench:
    """A daemon's rooms without its loop; ``today`` is what the runtime's version is."""

    root: Path
    today: Fingerprint
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.mailbox = Mailbox()
        folders = Folders(
            inbox=self.root / "inbox",
            published=self.root / "published",
            rejected=self.root / "rejected",
            state=self.root / "state",
        )
        folders.create()
        self.said = io.StringIO()
        self.house = House(
            config=Config(),
            folders=folders,
            store=JobStore(folders.database),
            models=Models(folders.published, lambda runtime: replace(self.today, runtime=runtime)),
            metrics=Metrics(build={}, target={}),
            log=Log(self.said, level="info", shape="text"),
            clock=lambda: self.now_s,
            wall_s=lambda: 0.0,
            inbox_hands=Hands(self.mailbox, threads=1, name="inbox"),
            job_hands=Hands(self.mailbox, threads=1, name="job"),
            care_hands=Hands(self.mailbox, threads=1, name="care"),
        )
        self.outcomes = Outcomes(self.house)
        self.healing = Healing(self.house, self.outcomes)

    def publish(self, name: str, seed: int) -> None:
        """A version measured under today's conditions, and its source."""
        drop = self.root / f"drop-{name}" / "inbox"
        drop.mkdir(parents=True)
        (drop / f"{name}.onnx").write_bytes(model_bytes(seed))
        staged = take(drop)
        artifact = {"runtime": "onnxruntime", "runtime_version": self.today.runtime_version}
        out = out_folder(drop.parent, name.encode())
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["artifact"] |= artifact
        (out / "manifest.json").write_text(json.dumps(manifest))
        done = publish.publish(out, name, self.house.folders.published, origin=Origin(key=staged.key))
        self.house.store.add_version(name, done.version, staged.key)
        self.house.store.set_current(name, done.version, pinned=0)
        sources.keep(staged.folder, staged.key, self.house.folders.sources)
        self.house.models.refresh(name)

    def turns(self, until_s: float) -> list[str]:
        """Turn the room every two seconds up to a time; the names of the jobs that it queued and nobody has run yet."""
        while self.now_s <= until_s:
            self.healing.turn(self.now_s)
            while self.house.busy:
                self.mailbox.wait(5.0)
                for letter in self.mailbox.letters():
                    letter()
            self.now_s += 2.0
        return [job.name for job in self.house.store.jobs(states=QUEUED)]

    def end(self) -> None:
        """Whatever is queued fails."""
        for job in self.house.store.jobs(states=QUEUED):
            self.house.store.finish(job.job_id, "failed")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, Fingerprint(runtime_version="1.0"))
    yield made
    made.house.close_hands()
    made.house.store.close()
    made.mailbox.close()


def upgrade(bench: Bench) -> None:
    bench.today = Fingerprint(runtime_version="2.0")


def test_runtime_that_is_replaced_under_the_daemon_is_found_the_next_day(bench: Bench) -> None:
    bench.publish("m", 1)
    assert bench.turns(10) == []
    upgrade(bench)
    assert bench.turns(20) == []
    bench.now_s = DAY_S
    assert bench.turns(DAY_S + 4) == ["m"]
    (job,) = bench.house.store.jobs()
    assert (job.drop_settled, job.source_file) == (True, "m.onnx")
    assert (bench.house.folders.staging / job.job_id / "input" / "model.onnx").read_bytes() == model_bytes(1)


def test_models_are_made_anew_one_after_the_other_and_after_every_drop(bench: Bench) -> None:
    for seed, name in enumerate("abc"):
        bench.publish(name, seed)
    upgrade(bench)
    bench.house.store.add(Job(job_id="drop", name="d", key="k"))
    assert bench.turns(10) == ["d"]
    bench.end()
    assert bench.turns(20) == ["a"]
    assert bench.turns(30) == ["a"]
    bench.end()
    assert bench.turns(40) == ["b"]


def test_what_could_not_be_made_anew_is_tried_again_the_next_day_only(bench: Bench) -> None:
    bench.publish("m", 1)
    upgrade(bench)
    assert bench.turns(4) == ["m"]
    bench.end()
    assert bench.turns(60) == []
    bench.now_s = DAY_S
    assert bench.turns(DAY_S + 4) == ["m"]


def test_nothing_is_read_or_made_while_the_daemon_is_paused(bench: Bench) -> None:
    bench.publish("m", 1)
    upgrade(bench)
    bench.outcomes.floor.paused = REASONS[0]
    assert bench.turns(10) == []
    bench.outcomes.floor.paused = None
    assert bench.turns(20) == ["m"]


def test_sources_follow_what_is_served(bench: Bench) -> None:
    bench.publish("m", 1)
    (bench.house.folders.sources / "of-nothing").mkdir()
    bench.turns(4)
    key = bench.house.store.served_keys()["m", 1]
    assert [path.name for path in bench.house.folders.sources.iterdir()] == [key[:32]]


def test_damaged_source_is_removed_and_reported(bench: Bench) -> None:
    bench.publish("m", 1)
    (source,) = bench.house.folders.sources.iterdir()
    (source / "input" / "model.onnx").write_bytes(b"rotted")
    upgrade(bench)
    assert bench.turns(10) == []
    assert "source-damaged" in bench.said.getvalue()
    assert not source.exists()
