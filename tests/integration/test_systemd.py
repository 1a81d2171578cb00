"""The shipped unit on a really booted systemd: installed by the shipped installer, used, broken, mended, stopped.

    tools/make_systemd_root.sh ROOT                                       (once)
    EDGEOPT_SYSTEMD_ROOT=ROOT pytest -m systemd -s tests/integration/test_systemd.py

With ``-s`` the tests tell what they saw; docs/deploy.md quotes that transcript. Only times are shortened against what is
shipped, by a drop-in (watchdog) and the configuration (settle, budget): the hardening is the unit's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from systemd_machine import Machine, MachineError, boot, missing

ROOT = Path(__file__).resolve().parents[2]
INBOX, PUBLISHED = "/var/lib/edgeopt/inbox", "/var/lib/edgeopt/published"
CONFIG = "/etc/edgeopt/edgeopt.yaml"
SETTINGS = """\
watch: {settle: 1s}
search: {budget: 40s}
limits: {sandbox: required}
"""
FAST_WATCHDOG = """\
[Service]
WatchdogSec=5s
TimeoutAbortSec=1s
RestartSec=200ms
"""

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("systemd"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the transcript is what docs/deploy.md quotes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a wheel, built in a copy so that nothing is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "edgeopt", source / "edgeopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    wheels = Path(os.environ["EDGEOPT_SYSTEMD_ROOT"], "opt/wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "-f", wheels, "-w", out, source],
        check=True,
    )
    return next(out.glob("edgeopt-*.whl"))


@pytest.fixture(scope="module")
def machine(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device with edgeopt installed by ``deploy/install.sh``, and three people: two may drop, one may not."""
    log = tmp_path_factory.mktemp("machine") / "nspawn.log"
    root = Path(os.environ["EDGEOPT_SYSTEMD_ROOT"])
    binds = {"/checkout": ROOT, "/package": wheel.parent, "/drops": drops(tmp_path_factory.mktemp("drops"))}
    before = leftovers()
    with boot(root, binds=binds, log=log) as device:
        say(f"\nbooted: {device.run('systemctl', '--version').splitlines()[0]}")
        write(device, CONFIG, SETTINGS)
        write(device, "/etc/systemd/system/edgeopt.service.d/fast.conf", FAST_WATCHDOG)
        say(
            device.run(
                "/checkout/deploy/install.sh",
                "--wheels",
                "/opt/wheels",
                "--package",
                f"/package/{wheel.name}",
                timeout_s=300,
            )
        )
        for person, groups in (("alice", "edgeopt-drop"), ("carol", "edgeopt-drop"), ("bob", "")):
            device.run("useradd", "--create-home", *(["-G", groups] if groups else []), person)
        yield device
        say(device.journal(400) if os.environ.get("EDGEOPT_SYSTEMD_JOURNAL") else "")
    assert leftovers() == before


def drops(folder: Path) -> Path:
    """The shipped digits CNN with its samples, and the same under other names with other bytes (a doc_string)."""
    shipped = ROOT / "edgeopt/demo"
    for name in ("digits", "again", "killed"):
        more = b"" if name == "digits" else b"\x32" + bytes([len(name)]) + name.encode()
        (folder / f"{name}.onnx").write_bytes((shipped / "digits.onnx").read_bytes() + more)
        for part in ("calibration", "eval"):
            shutil.copy(shipped / f"digits.{part}.npz", folder / f"{name}.{part}.npz")
    folder.chmod(0o755)
    return folder


def leftovers() -> dict[str, list[str]]:
    """What a machine could leave behind: mounts, cgroups, nspawn's own folders."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    cgroups = [str(path) for part in ("payload", "supervisor") for path in Path("/sys/fs/cgroup").glob(f"**/{part}")]
    return {
        "mounts": [line for line in mounts if "nspawn" in line],
        "cgroups": cgroups,
        "folders": [
            str(path) for path in (*Path("/tmp").glob("nspawn-*"), *Path("/run/systemd/nspawn").glob("*/edgeopt-*"))
        ],
    }


def write(device: Machine, path: str, text: str) -> None:
    device.run("sh", "-c", f'mkdir -p "$(dirname {path})" && printf %s "$1" > {path}', "sh", text)


def get(device: Machine, page: str) -> str:
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    return device.run("/opt/edgeopt/bin/python", "-c", fetch, f"http://127.0.0.1:9188{page}")


def metric(device: Machine, name: str) -> float:
    return float(re.findall(rf"^{name} (\S+)$", get(device, "/metrics"), re.MULTILINE)[0])


def drop(device: Machine, name: str, *, person: str = "alice") -> None:
    """A person copies a model and its samples; the model comes last, since it makes the files a drop."""
    for part in (".calibration.npz", ".eval.npz", ".onnx"):
        device.run("runuser", "-u", person, "--", "cp", f"/drops/{name}{part}", INBOX)


def published(device: Machine, name: str) -> dict[str, Any] | None:
    done = device.attempt("cat", f"{PUBLISHED}/{name}/current/manifest.json")
    return json.loads(done.stdout) if done.returncode == 0 else None


def pid(device: Machine) -> int:
    return int(device.unit("edgeopt")["MainPID"])


def pgrep(device: Machine, pattern: str) -> list[str] | None:
    return device.attempt("pgrep", "-f", "--", pattern).stdout.split() or None


def active_again(device: Machine, old: int, *, timeout_s: float) -> tuple[int, float]:
    def look() -> int | None:
        unit = device.unit("edgeopt")
        new = int(unit["MainPID"])
        return new if new not in {0, old} and unit["ActiveState"] == "active" else None

    return device.wait_for("a new main process", look, timeout_s=timeout_s)


@pytest.fixture
def unit(machine: Machine) -> Machine:
    """The machine with the service running, whatever the test before did to it."""
    machine.attempt("systemctl", "reset-failed", "edgeopt")
    machine.run("systemctl", "start", "edgeopt")
    return machine


# ---------------------------------------------------------------- installed
def test_the_installed_unit_is_what_was_checked(unit: Machine) -> None:
    assert unit.run("systemd-analyze", "verify", "--man=no", "edgeopt.service") == ""
    exposure = unit.run("systemd-analyze", "security", "--no-pager", "--threshold=10", "edgeopt.service").splitlines()[
        -1
    ]
    say(exposure)
    assert unit.run("systemctl", "--failed", "--no-legend") == ""


def test_the_daemon_runs_as_its_own_user_without_any_privilege(unit: Machine) -> None:
    status = unit.run("cat", f"/proc/{pid(unit)}/status")
    facts = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE))
    say(
        f"uid {facts['Uid'].split()[0]}, CapEff {facts['CapEff']}, NoNewPrivs {facts['NoNewPrivs']}, Seccomp {facts['Seccomp']}"
    )
    assert facts["Uid"].split()[0] == unit.run("id", "-u", "edgeopt")
    assert (int(facts["CapEff"], 16), facts["NoNewPrivs"], facts["Seccomp"]) == (0, "1", "2")
    assert (unit.unit("edgeopt")["OOMScoreAdjust"], unit.unit("edgeopt")["OOMPolicy"]) == ("-500", "continue")
    # lowering it takes CAP_SYS_RESOURCE, which a machine that is itself a container may not have to give
    effective = re.search(r"^CapEff:\s+(\w+)$", unit.run("cat", "/proc/1/status"), re.MULTILINE)
    if effective and int(effective[1], 16) >> 24 & 1:
        assert unit.run("cat", f"/proc/{pid(unit)}/oom_score_adj") == "-500"


def test_start_returns_when_the_daemon_is_ready_and_says_so(unit: Machine) -> None:
    start_s = time.monotonic()
    unit.run("systemctl", "restart", "edgeopt")
    passed_s = time.monotonic() - start_s
    status = unit.unit("edgeopt")["StatusText"]
    say(f"systemctl restart came back after {passed_s:.1f} s: {unit.unit('edgeopt')['ActiveState']}, STATUS {status!r}")
    assert get(unit, "/readyz")
    assert status


# ---------------------------------------------------------------- used
def test_what_a_member_of_the_group_drops_is_published_under_the_hardening(unit: Machine) -> None:
    drop(unit, "digits")
    seen: list[str] = []

    def look() -> dict[str, Any] | None:
        status = unit.unit("edgeopt")["StatusText"]
        if status not in seen[-1:]:
            seen.append(status)
        return published(unit, "digits")

    manifest, passed_s = unit.wait_for("a published version", look, timeout_s=240)
    say(f"published after {passed_s:.0f} s; STATUS went: " + " | ".join(seen[-8:]))
    say(f"{manifest.get('verdict')} recipe {manifest['recipe']}")
    unit.wait_for("the inbox to be empty", lambda: not unit.run("ls", "-A", INBOX) or None, timeout_s=10)
    folder = f"{PUBLISHED}/digits/1"
    assert set(unit.run("ls", folder).split()) >= {"model.onnx", "manifest.json", "report.html", "SHA256SUMS"}
    unit.run("sh", "-c", f"cd {folder} && sha256sum --check --quiet SHA256SUMS")
    assert manifest["version"] == 1
    assert any("refused" not in candidate for candidate in manifest["candidates"])
    assert 'edgeopt_model_version{model="digits"} 1.0' in get(unit, "/metrics")


def test_the_published_version_verifies_where_it_lies(unit: Machine) -> None:
    say(
        unit.run(
            "runuser",
            "-u",
            "edgeopt",
            "--",
            "/opt/edgeopt/bin/edgeopt",
            "verify",
            f"{PUBLISHED}/digits/1",
            timeout_s=120,
        )
    )


def test_the_same_drop_again_is_no_new_work(unit: Machine) -> None:
    drop(unit, "digits")
    unit.wait_for("the inbox to be empty", lambda: not unit.run("ls", "-A", INBOX) or None, timeout_s=60)
    assert unit.run("ls", f"{PUBLISHED}/digits").split() == ["1", "current"]


def test_a_folder_of_a_member_with_group_write_is_taken_whole(unit: Machine) -> None:
    script = f"umask 002; mkdir {INBOX}/.whole && cp /drops/digits.onnx {INBOX}/.whole/model.onnx && mv {INBOX}/.whole {INBOX}/whole"
    unit.run("runuser", "-u", "alice", "--", "sh", "-c", script)
    unit.wait_for("the folder to be published", lambda: published(unit, "whole"), timeout_s=240)
    unit.wait_for("the inbox to be empty", lambda: not unit.run("ls", "-A", INBOX) or None, timeout_s=20)


def test_a_folder_that_the_group_cannot_write_is_published_and_said_to_stay(unit: Machine) -> None:
    script = (
        f"umask 022; mkdir {INBOX}/.l && cp /drops/again.onnx {INBOX}/.l/model.onnx && mv {INBOX}/.l {INBOX}/locked"
    )
    unit.run("runuser", "-u", "alice", "--", "sh", "-c", script)
    unit.wait_for("the folder to be published", lambda: published(unit, "locked"), timeout_s=240)
    unit.wait_for("the word of it", lambda: "drop-stays" in unit.journal() or None, timeout_s=20)
    assert unit.run("ls", INBOX) == "locked"
    unit.run("chmod", "-R", "g+rwX", f"{INBOX}/locked")
    unit.wait_for("the inbox to be empty", lambda: not unit.run("ls", "-A", INBOX) or None, timeout_s=120)
    assert unit.run("ls", f"{PUBLISHED}/locked").split() == ["1", "current"]


def test_a_worker_that_is_killed_as_the_kernel_would_leaves_the_daemon_alone(unit: Machine) -> None:
    drop(unit, "killed")
    worker, _ = unit.wait_for("a worker", lambda: pgrep(unit, "edgeopt.worker --job"), timeout_s=60)
    before = pid(unit)
    score = ("cat", f"/proc/{worker[0]}/oom_score_adj")
    unit.wait_for("the worker to be expendable", lambda: unit.run(*score) == "1000" or None, timeout_s=10)
    unit.run("kill", "-KILL", *worker)
    manifest, passed_s = unit.wait_for("the second attempt's end", lambda: published(unit, "killed"), timeout_s=240)
    say(f"worker killed: the daemon lives on ({before}), the job's next attempt was published within {passed_s:.0f} s")
    assert pid(unit) == before
    assert manifest["version"] == 1


def test_a_drop_that_is_no_model_is_rejected_although_it_belongs_to_somebody_else(unit: Machine) -> None:
    unit.run("runuser", "-u", "alice", "--", "sh", "-c", f"echo nonsense > {INBOX}/bad.onnx")

    def look() -> str | None:
        return unit.attempt("sh", "-c", "cat /var/lib/edgeopt/rejected/bad@*/reason.json").stdout or None

    reason, _ = unit.wait_for("the rejection", look, timeout_s=60)
    say(f"rejected: {json.loads(reason)['code']}: {json.loads(reason)['message']}")
    unit.wait_for("its leaving", lambda: "bad.onnx" not in unit.run("ls", "-A", INBOX) or None, timeout_s=10)


@pytest.mark.parametrize(
    ("person", "command"),
    [
        ("bob", f"touch {INBOX}/mine.onnx"),
        ("bob", f"ls {INBOX}"),
        ("alice", "ls /var/lib/edgeopt/state"),
        ("alice", "ls /var/lib/edgeopt/rejected"),
        ("alice", f"touch {PUBLISHED}/x"),
        ("alice", f"cat {CONFIG}"),
    ],
)
def test_nobody_reaches_what_is_not_theirs(unit: Machine, person: str, command: str) -> None:
    unit.run("chmod", "0640", CONFIG)
    unit.run("chgrp", "edgeopt", CONFIG)
    done = unit.attempt("runuser", "-u", person, "--", "sh", "-c", command)
    assert done.returncode != 0
    assert "ermission denied" in done.stderr


def test_one_member_cannot_take_away_what_another_dropped(unit: Machine) -> None:
    unit.run("runuser", "-u", "alice", "--", "sh", "-c", f"echo x > {INBOX}/hers.onnx.part")
    done = unit.attempt("runuser", "-u", "carol", "--", "rm", "-f", f"{INBOX}/hers.onnx.part")
    assert done.returncode != 0
    unit.run("runuser", "-u", "alice", "--", "rm", f"{INBOX}/hers.onnx.part")


# ---------------------------------------------------------------- reloaded
def test_reload_takes_a_good_configuration_and_keeps_the_old_one_for_a_bad_one(unit: Machine) -> None:
    before = pid(unit)
    good = unit.run("cat", CONFIG)
    write(unit, CONFIG, f"{good}\ngaol: {{}}\n")
    unit.attempt("systemctl", "reload", "edgeopt")
    unit.wait_for(
        "the refused reload", lambda: metric(unit, "edgeopt_config_last_reload_successful") == 0 or None, timeout_s=10
    )
    write(unit, CONFIG, good)
    unit.run("systemctl", "reload", "edgeopt")
    unit.wait_for(
        "the good reload", lambda: metric(unit, "edgeopt_config_last_reload_successful") == 1 or None, timeout_s=10
    )
    say(f"reload: main process still {pid(unit)}, {unit.unit('edgeopt')['ActiveState']}")
    assert pid(unit) == before


# ---------------------------------------------------------------- broken
def test_a_daemon_that_hangs_is_restarted_by_the_watchdog(unit: Machine) -> None:
    old, restarts = pid(unit), int(unit.unit("edgeopt")["NRestarts"])
    unit.run("kill", "-STOP", str(old))
    new, passed_s = active_again(unit, old, timeout_s=30)
    say(f"SIGSTOP: {old} was replaced by {new} after {passed_s:.1f} s (WatchdogSec=5s, TimeoutAbortSec=1s)")
    assert int(unit.unit("edgeopt")["NRestarts"]) == restarts + 1
    assert "Watchdog timeout" in unit.journal(400)


def test_a_daemon_that_crashes_is_restarted_and_its_stack_is_in_the_journal(unit: Machine) -> None:
    old = pid(unit)
    unit.run("kill", "-SEGV", str(old))
    new, passed_s = active_again(unit, old, timeout_s=30)
    say(f"SIGSEGV: {old} was replaced by {new} after {passed_s:.1f} s")
    assert "Fatal Python error: Segmentation fault" in unit.journal(400)


def test_a_wrong_configuration_stops_the_service_instead_of_restarting_it(unit: Machine) -> None:
    good = unit.run("cat", CONFIG)
    unit.run("systemctl", "stop", "edgeopt")
    write(unit, CONFIG, "gaol: {}\n")
    done = unit.attempt("systemctl", "start", "edgeopt")
    state = unit.unit("edgeopt")
    say(
        f"wrong configuration: start exited {done.returncode}, {state['ActiveState']}, exit code {state['ExecMainStatus']}"
    )
    write(unit, CONFIG, good)
    assert done.returncode != 0
    assert (state["ActiveState"], state["ExecMainStatus"], state["NRestarts"]) == ("failed", "2", "0")
    assert "gaol" in unit.journal()


# ---------------------------------------------------------------- stopped
def test_stop_in_the_middle_of_a_job_is_quick_and_the_job_goes_on_after_the_start(unit: Machine) -> None:
    drop(unit, "again")
    unit.wait_for("a worker", lambda: pgrep(unit, "edgeopt.worker --job"), timeout_s=60)
    start_s = time.monotonic()
    unit.run("systemctl", "stop", "edgeopt")
    passed_s = time.monotonic() - start_s
    state = unit.unit("edgeopt")
    say(f"stop in the middle of a job: {passed_s:.1f} s, Result {state['Result']}, exit code {state['ExecMainStatus']}")
    assert passed_s < 30
    assert (state["Result"], state["ExecMainStatus"]) == ("success", "0")
    assert unit.attempt("pgrep", "-u", "edgeopt").stdout == ""
    assert published(unit, "again") is None
    unit.run("systemctl", "start", "edgeopt")
    manifest, passed_s = unit.wait_for("the job's end", lambda: published(unit, "again"), timeout_s=240)
    say(f"after the start it was published within {passed_s:.0f} s as version {manifest['version']}")


def test_nothing_in_the_journal_says_that_the_hardening_was_in_the_way(unit: Machine) -> None:
    text = unit.run("journalctl", "-u", "edgeopt", "--no-pager", "-o", "cat")
    complaints = [
        line for line in text.splitlines() if re.search(r"not permitted|Read-only file|EPERM|ermission denied", line)
    ]
    # the unit leaves the worker no capability at all, so that it may not drop any takes nothing away;
    # and the folder that the group could not write was a test's doing
    expected = ("capset", "removing locked from the inbox")
    assert [line for line in complaints if not any(words in line for words in expected)] == []


def test_waiting_for_what_never_comes_fails_with_the_journal(unit: Machine) -> None:
    with pytest.raises(MachineError, match="nothing did not come about"):
        unit.wait_for("nothing", lambda: None, timeout_s=0.3)
