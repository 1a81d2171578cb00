"""A runtime upgrade from beginning to end: an old onnxruntime is replaced in place under a daemon and servers, and all are counted.

    python benchmarks/upgrade.py [MODEL ...] [--old 1.23.2] [--new VERSION] [--budget 60s] [--keep DIR]

MODEL is a folder with model.onnx, calib.npz and eval.npz; the shipped digits CNN always comes first. A virtual environment of its own
gets the old onnxruntime (everything else is this interpreter's), the real daemon publishes each model under it, and a server of
each calls it through `edgeopt.load` without end (benchmarks/upgrade_reader.py). Then the daemon is stopped, pip puts the new onnxruntime in
the old one's place, and the daemon starts again. Two more servers start between the two: one as it is, one with
`accept_stale=True`. /metrics is read until nothing is stale. Nothing is faked: two releases from the package index, real jobs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
import onnx

import edgeopt

CHECKOUT = Path(edgeopt.__file__).resolve().parent.parent
SHIPPED = CHECKOUT / "edgeopt" / "demo"
READER = Path(__file__).with_name("upgrade_reader.py")
POLL_S = 0.2
QUIET_S = 10.0
"""How long servers are watched before and after."""
PATIENCE_S = 1200.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--old", default="1.23.2")
    parser.add_argument("--new", default=version("onnxruntime"), help="default: the one installed here")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--keep", type=Path, help="work here and leave everything in place")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp(prefix="edgeopt-upgrade-"))
    home.mkdir(parents=True, exist_ok=True)
    models = [Model.shipped(), *(Model.of(folder) for folder in options.models)]
    print(report(upgraded(home, models, options), options))
    if options.keep is None:
        shutil.rmtree(home)
    return 0


def upgraded(home: Path, models: list[Model], options: argparse.Namespace) -> Upgrade:
    """Everything in its order."""
    python = environment(home / "venv")
    install(python, options.old)
    told = Upgrade(models=models)
    for model in models:
        model.write_feed(home)
    try:
        watched(home, python, told, options)
    finally:
        for server in told.servers:
            server.process.kill()
    return told


def watched(home: Path, python: Path, told: Upgrade, options: argparse.Namespace) -> None:
    models, servers = told.models, told.servers
    with Daemon(home, python, options.budget) as daemon:
        for model in models:
            daemon.drop(model)
        for model in models:
            model.before = daemon.published(model.name, 1)
            say(f"{model.name}: version 1 under onnxruntime {model.before['artifact']['runtime_version']}")
    servers += [Server(home, python, model, "started before, never restarted") for model in models]
    time.sleep(QUIET_S)
    told.begun_s = time.time()
    install(python, options.new)
    servers += [Server(home, python, model, "restarted in between") for model in models]
    servers += [
        Server(home, python, model, "restarted in between, `accept_stale=True`", stale=True) for model in models
    ]
    with Daemon(home, python, options.budget) as daemon:
        daemon.watch(models)
        for model in models:
            model.after = daemon.published(model.name, 2)
    told.ended_s = time.time()
    servers += [Server(home, python, model, "restarted after") for model in models]
    time.sleep(QUIET_S)
    for server in servers:
        server.stop()


# ---------------------------------------------------------------- what is upgraded
def environment(folder: Path) -> Path:
    """A virtual environment that sees this interpreter's packages behind its own; its python."""
    venv.create(folder, with_pip=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    behind = [str(CHECKOUT), *(entry for entry in sys.path if Path(entry).name == "site-packages")]
    (site / "behind.pth").write_text("\n".join(behind) + "\n")
    return folder / "bin" / "python"


def install(python: Path, release: str) -> None:
    """Put this onnxruntime in place of what is there, with pip, as an operator does."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", f"onnxruntime=={release}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    code = "import onnxruntime; print(onnxruntime.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if found != release:
        raise SystemExit(f"onnxruntime {release} was installed and {found} is imported")
    say(f"onnxruntime {release} is installed")


@dataclass
class Model:
    """A model with its data, and what became of it."""

    name: str
    files: dict[str, Path]
    """Suffix in the inbox to file; the model last."""
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    stale_from_s: float = 0.0
    stale_until_s: float = 0.0

    @classmethod
    def shipped(cls) -> Model:
        kinds = (".calibration.npz", ".eval.npz", ".onnx")
        return cls("digits", {kind: SHIPPED / f"digits{kind}" for kind in kinds})

    @classmethod
    def of(cls, folder: Path) -> Model:
        names = {".calibration.npz": "calib.npz", ".eval.npz": "eval.npz", ".onnx": "model.onnx"}
        return cls(folder.resolve().name, {kind: folder / name for kind, name in names.items()})

    def write_feed(self, home: Path) -> None:
        """The first eval sample as one call's inputs."""
        graph = onnx.load(self.files[".onnx"], load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        with np.load(self.files[".eval.npz"]) as samples:
            feed = {}
            for item in graph.input:
                if item.name not in weights:
                    array = samples[item.name]
                    rank = len(item.type.tensor_type.shape.dim)
                    feed[item.name] = array[:1] if array.ndim == rank else array[0]
        np.savez(self.feed(home), **feed)

    def feed(self, home: Path) -> Path:
        return home / f"{self.name}.feed.npz"


# ---------------------------------------------------------------- who works
class Daemon:
    """`edgeopt serve` in the environment; a second one goes on with the first one's folders."""

    def __init__(self, home: Path, python: Path, budget: str) -> None:
        self.home = home
        (home / "inbox").mkdir(exist_ok=True)
        self.configuration = home / "edgeopt.yaml"
        self.configuration.write_text(
            "inbox: inbox\npublished: published\nrejected: rejected\nstate: state\nwatch: {settle: 500ms}\n"
            f'search: {{budget: {budget}}}\nhttp: {{listen: "127.0.0.1:0"}}\n'
        )
        self.python = python

    def __enter__(self) -> Self:
        self.log = self.home / "daemon.log"
        with self.log.open("ab") as log:
            self.begun = self.log.stat().st_size
            command = [self.python, "-m", "edgeopt", "serve", "-c", self.configuration]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def drop(self, model: Model) -> None:
        """As a careful program drops: under a name that waits, then renamed."""
        for kind, file in model.files.items():
            waiting = self.home / "inbox" / f".{model.name}{kind}.part"
            shutil.copyfile(file, waiting)
            waiting.rename(self.home / "inbox" / f"{model.name}{kind}")

    def published(self, name: str, number: int) -> dict:
        """The manifest of a version, as soon as it serves."""
        until_s = time.monotonic() + PATIENCE_S
        current = self.home / "published" / name / "current"
        while not current.is_symlink() or int(current.readlink().name) < number:
            self.check(until_s, f"version {number} of {name}")
        return json.loads((current / "manifest.json").read_text())

    def watch(self, models: list[Model]) -> None:
        """Read /metrics until every model was stale and is no longer."""
        until_s = time.monotonic() + PATIENCE_S
        while not all(model.stale_until_s for model in models):
            stale = self.stale()
            for model in models:
                reasons = sorted(reason for name, reason in stale if name == model.name)
                if reasons and not model.reasons:
                    model.reasons, model.stale_from_s = reasons, time.time()
                    say(f'{model.name}: edgeopt_artifact_stale{{reason="{",".join(reasons)}"}} 1')
                if model.reasons and not reasons and not model.stale_until_s:
                    model.stale_until_s = time.time()
                    say(f"{model.name}: 0 after {model.stale_until_s - model.stale_from_s:.0f} s")
            self.check(until_s, "a healed version of every model")

    def stale(self) -> set[tuple[str, str]]:
        """Model and reason of every series of `edgeopt_artifact_stale` that is 1."""
        address = re.search(r"address=(\S+)", self.log.read_bytes()[self.begun :].decode())
        if address is None:
            return set()
        try:
            with urllib.request.urlopen(f"http://{address[1]}/metrics", timeout=5) as answer:
                page = answer.read().decode()
        except OSError:
            return set()
        return set(
            re.findall(r'^edgeopt_artifact_stale\{model="([^"]+)",reason="([^"]+)"\} 1(?:\.0)?$', page, re.MULTILINE)
        )

    def check(self, until_s: float, waited_for: str) -> None:
        if self.process.poll() is not None or time.monotonic() > until_s:
            raise SystemExit(f"{waited_for} did not come; the daemon said:\n{self.log.read_text()[-3000:]}")
        time.sleep(POLL_S)


class Server:
    """A process that serves one model."""

    def __init__(self, home: Path, python: Path, model: Model, kind: str, *, stale: bool = False) -> None:
        self.model, self.kind = model, kind
        self.tally_file = home / f"{model.name}.{re.sub('[^a-z]+', '-', kind)}.json"
        command = [python, READER, home / "published" / model.name, "--feed", model.feed(home)]
        command += ["--tally", self.tally_file, *(["--accept-stale"] if stale else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.tally: dict = {}

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60):
            raise SystemExit(f"the server of {self.model.name} ({self.kind}) ended with {self.process.returncode}")
        self.tally = json.loads(self.tally_file.read_text())


@dataclass
class Upgrade:
    """What happened; times are the wall clock's."""

    models: list[Model]
    servers: list[Server] = field(default_factory=list)
    begun_s: float = 0.0
    """The old runtime is about to be replaced."""
    ended_s: float = 0.0
    """Nothing is stale any more."""


# ---------------------------------------------------------------- what is told
def report(told: Upgrade, options: argparse.Namespace) -> str:
    ending = (
        f"onnxruntime {options.old} replaced by {options.new} in place; {told.ended_s - told.begun_s:.0f} s from pip to "
        f"the last healed version, budget {options.budget} a model."
    )
    lines = [
        "| model | version | onnxruntime | stale because of | seconds stale | calls answered meanwhile | failed | quality before | quality after |",
        "|---|---|---|---|---|---|---|---|---|",
        *(model_line(model, told) for model in told.models),
        "",
        "| model | server | library in memory | before: calls | during: calls | after: calls | failed | loads refused, for | version: calls |",
        "|---|---|---|---|---|---|---|---|---|",
        *(server_line(server, told) for server in told.servers),
        "",
        "Said by servers:",
        "",
        *dict.fromkeys(f"- {server.kind}: {words}" for server in told.servers for words in sentences(server)),
        "",
        ending,
    ]
    return "\n".join(lines)


def model_line(model: Model, told: Upgrade) -> str:
    old, new = model.before, model.after
    kept = next(server for server in told.servers if server.model is model)
    during = between(kept.tally["calls"], told.begun_s, told.ended_s)
    failed = sum(count for _, count in kept.tally["failures"])
    runtimes = " -> ".join(each["artifact"]["runtime_version"] for each in (old, new))
    return (
        f"| {model.name} | {old['version']} -> {new['version']} | {runtimes} | {', '.join(model.reasons)} "
        f"| {model.stale_until_s - model.stale_from_s:.0f} | {during} | {failed} | {quality(old)} | {quality(new)} |"
    )


def quality(manifest: dict) -> str:
    found = manifest["result"]["quality"]
    speedup = manifest["result"]["speedup"]["value"]
    return f"{found['metric']} {found['value']:.4f} (drop {found['drop']:.4f}, at most {found['ci95'][1]:.4f}), {speedup:.2f} times as fast"


def server_line(server: Server, told: Upgrade) -> str:
    tally = server.tally
    counts = [
        between(tally["calls"], *window)
        for window in ((0.0, told.begun_s), (told.begun_s, told.ended_s), (told.ended_s, 1e12))
    ]
    refused = [at for at, _ in tally["refused"]]
    shut = f"{len(refused)}, {refused[-1] - refused[0]:.0f} s" if refused else "0"
    versions: dict[int, int] = {}
    for _, number, count in tally["calls"]:
        versions[number] = versions.get(number, 0) + count
    served = ", ".join(f"{number}: {count}" for number, count in sorted(versions.items()))
    failed = sum(count for _, count in tally["failures"])
    return (
        f"| {server.model.name} | {server.kind} | {tally['library']} | {' | '.join(map(str, counts))} "
        f"| {failed} | {shut} | {served} |"
    )


def between(calls: list[list[float]], begin_s: float, end_s: float) -> int:
    return int(sum(count for at_s, _, count in calls if begin_s <= at_s < end_s))


def sentences(server: Server) -> list[str]:
    """What it said, without where its folders lie."""
    told = [*server.tally["said"], *(words for _, words in server.tally["refused"])]
    return [re.sub(r"\S*/published/", "published/", words) for words in told]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
