"""The job store as a state machine whose process dies after any operation: the reopened store always says the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeopt.daemon.jobs import ACTIVE, CRASH_LIMIT, STATES, Job, JobStore

MEMORY = Path("/dev/shm")  # a commit costs an fsync
KEYS = st.sampled_from(["k1", "k2", "k3"])
ENDS = st.sampled_from(["published", "rejected", "failed", "cancelled"])


class Model:
    """What the store should know, kept the simple way."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.crashes: dict[str, int] = {}
        self.versions: dict[str, int] = {}


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.copies = 0
        self.path = self.folder / "jobs.sqlite"
        self.store = JobStore(self.path)
        self.model = Model()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def reopen(self) -> None:
        """As after kill -9: the files as they are, without a close."""
        self.copies += 1
        copy = self.folder / f"copy{self.copies}"
        copy.mkdir()
        for file in self.path.parent.glob("jobs.sqlite*"):
            shutil.copy(file, copy)
        self.store.close()
        self.path = copy / "jobs.sqlite"
        self.store = JobStore(self.path)
        assert self.store.moved_aside is None

    def some(self, *states: str) -> list[str]:
        return [job_id for job_id, state in self.model.states.items() if state in states]

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        job_id = f"job{len(self.model.states)}"
        self.store.add(Job(job_id=job_id, name=f"m-{job_id}", key=key))
        self.model.states[job_id], self.model.attempts[job_id], self.model.keys[job_id] = "queued", 0, key
        self.reopen()

    @precondition(lambda self: self.some("queued"))
    @rule()
    def start(self) -> None:
        job = self.store.next_queued()
        assert job is not None
        assert self.model.states[job.job_id] == "queued"
        self.store.start(job.job_id)
        self.model.states[job.job_id] = "running"
        self.reopen()

    @precondition(lambda self: self.some("running"))
    @rule(data=st.data(), end=ENDS)
    def finish(self, data: st.DataObject, end: str) -> None:
        job_id = data.draw(st.sampled_from(self.some("running")))
        version = len(self.model.versions) + 1 if end == "published" else 0
        self.store.finish(job_id, end, version=version)  # type: ignore[arg-type]
        self.model.states[job_id] = end
        self.model.crashes.pop(self.model.keys[job_id], None)
        if version:
            self.model.versions[job_id] = version
        self.reopen()

    @precondition(lambda self: self.some("running"))
    @rule(data=st.data(), count=st.booleans())
    def requeue(self, data: st.DataObject, count: bool) -> None:
        job_id = data.draw(st.sampled_from(self.some("running")))
        self.store.requeue(job_id, count=count)
        self.model.states[job_id] = "queued"
        self.model.attempts[job_id] += count
        self.reopen()

    @precondition(lambda self: self.some("running", "queued"))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.some("running", "queued")))
        self.store.hold(job_id, code="disk-full", message="no space")
        self.model.states[job_id] = "held"
        self.reopen()

    @rule()
    def daemon_dies_and_recovers(self) -> None:
        looping = {job.job_id for job in self.store.recover()}
        expected = set()
        # newest first, as the store goes through them
        for job_id in reversed(self.some("running")):
            key = self.model.keys[job_id]
            self.model.crashes[key] = self.model.crashes.get(key, 0) + 1
            self.model.attempts[job_id] += 1
            if self.model.crashes[key] >= CRASH_LIMIT:
                expected.add(job_id)
        for job_id in self.some("running", "held"):
            self.model.states[job_id] = "queued"
        assert looping == expected
        self.reopen()

    @invariant()
    def store_agrees_with_the_model(self) -> None:
        jobs = {job.job_id: job for job in self.store.jobs()}
        assert {job_id: job.state for job_id, job in jobs.items()} == self.model.states
        assert {job_id: job.attempts for job_id, job in jobs.items()} == self.model.attempts
        counts = self.store.counts()
        assert counts == {state: list(self.model.states.values()).count(state) for state in STATES}
        for key in ("k1", "k2", "k3"):
            active = [job_id for job_id in self.some(*ACTIVE) if self.model.keys[job_id] == key]
            found = self.store.find_active(key)
            assert (found is not None) == bool(active)
            published = {version for job_id, version in self.model.versions.items() if self.model.keys[job_id] == key}
            assert {version for _, version in self.store.find_by_key(key)} == published


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None, derandomize=True)
