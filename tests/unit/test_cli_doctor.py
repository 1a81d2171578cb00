"""The check-up: what it finds on devices that lack something, and how it says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeopt.cli import checkup, checkup_targets
from edgeopt.cli.checkup import Finding
from edgeopt.cli.main import main
from edgeopt.config.schema import Config, Limits
from edgeopt.device import Host


def host(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Host(proc=root / "proc", sys=root / "sys", dev=root / "dev", machine="x86_64", affinity=frozenset({0}))


def only(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def folders_in(root: Path) -> Config:
    return Config(**{name: str(root / name) for name in ("inbox", "published", "rejected", "state")})  # type: ignore[arg-type]  # all four are paths


@pytest.mark.parametrize(
    ("flags", "state", "value"),
    [("avx2 avx512_vnni", "ok", "dot products (avx512_vnni)"), ("avx2", "note", "no dot products")],
)
def test_int8_verdict_follows_the_dot_products(tmp_path: Path, flags: str, state: str, value: str) -> None:
    there = host(tmp_path, {"proc/cpuinfo": f"processor: 0\nflags: {flags}\n"})
    verdict = only(checkup.check_instructions(there), "int8")
    assert (verdict.state, verdict.value) == (state, value)


def test_arm_is_made_ahead_of_time_elsewhere(tmp_path: Path) -> None:
    there = host(tmp_path, {"proc/cpuinfo": "processor: 0\nflags: avx2\n"})
    found = only(checkup_targets.check_targets(there, installed_flavour=lambda _flavour: None), "arm")
    assert (found.value, found.state) == ("builds but does not run here", "ok")
    assert "unverified" in found.meaning


def test_missing_runtime_is_broken_and_missing_extra_is_worth_knowing() -> None:
    findings = checkup.check_runtimes(lambda name: "1.2.3" if name == "onnx" else None)
    assert (only(findings, "onnx").state, only(findings, "onnx").value) == ("ok", "1.2.3")
    assert (only(findings, "onnxruntime").state, only(findings, "onnxruntime").fix) == (
        "broken",
        "pip install onnxruntime",
    )
    assert (only(findings, "torch").state, only(findings, "torch").fix) == ("note", "pip install 'edgeopt[train]'")


def test_gpu_build_of_the_runtime_counts_as_the_runtime() -> None:
    findings = checkup.check_runtimes(lambda name: "1.2.3" if name == "onnxruntime-gpu" else None)
    assert only(findings, "onnxruntime").state == "ok"


def test_low_inotify_limit_comes_with_the_command_that_raises_it(tmp_path: Path) -> None:
    there = host(tmp_path, {"proc/sys/fs/inotify/max_user_watches": "100\n"})
    findings = checkup.check_inotify(there)
    assert only(findings, "max_user_watches").fix == "sysctl fs.inotify.max_user_watches=8192"
    assert only(findings, "max_user_instances").value == "unknown"


def test_folders_that_are_not_there_yet_are_fine(tmp_path: Path) -> None:
    findings = checkup.check_folders(folders_in(tmp_path), host(tmp_path, {}))
    assert [finding.state for finding in findings] == ["ok"] * 4
    assert only(findings, "inbox").meaning == "made at the daemon's start"


def test_inbox_on_a_network_filesystem_is_polled(tmp_path: Path) -> None:
    there = host(tmp_path, {"proc/mounts": f"/dev/sda1 / ext4 rw 0 0\nnas:/x {tmp_path.resolve()} nfs4 rw 0 0\n"})
    findings = checkup.check_folders(folders_in(tmp_path), there)
    assert "nfs4" in only(findings, "inbox").meaning
    assert only(findings, "published").state == "ok"


def test_full_disk_is_told(tmp_path: Path) -> None:
    config = folders_in(tmp_path)
    greedy = Config(
        inbox=config.inbox,
        published=config.published,
        rejected=config.rejected,
        state=config.state,
        limits=Limits(inbox_free_bytes=1 << 60),
    )
    assert "less than limits.inbox_free" in only(checkup.check_folders(greedy, host(tmp_path, {})), "inbox").meaning


def test_folder_that_cannot_be_written_is_broken_where_somebody_configured_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write everywhere, so the kernel's answer is the one thing that has to be made up here
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    there = host(tmp_path, {})
    configured = only(checkup.check_folders(folders_in(tmp_path), there), "inbox")
    default = only(checkup.check_folders(folders_in(tmp_path), there, configured=False), "inbox")
    assert (configured.state, configured.meaning) == ("broken", "not writable")
    assert (default.state, default.meaning) == ("note", "not writable")
    assert str(tmp_path / "inbox") in configured.fix


@pytest.mark.parametrize(
    ("abi", "sandbox", "state"),
    [(7, "auto", "ok"), (3, "auto", "note"), (0, "auto", "note"), (0, "required", "broken")],
)
def test_landlock_is_judged_by_what_the_configuration_asks(abi: int, sandbox: str, state: str) -> None:
    config = Config(limits=Limits(sandbox=sandbox))  # type: ignore[arg-type]  # one of the three words
    assert checkup.check_sandbox(config, abi)[0].state == state


def test_systemd_without_the_unit_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "systemd" / "system").mkdir(parents=True)
    units = tmp_path / "units"
    (missing,) = checkup.check_systemd(tmp_path, (units,))
    assert "systemctl enable --now edgeopt" in missing.fix
    units.mkdir()
    (units / "edgeopt.service").touch()
    assert checkup.check_systemd(tmp_path, (units,))[0].value == str(units / "edgeopt.service")
    assert checkup.check_systemd(tmp_path / "elsewhere", (units,))[0].value == "not running"


def test_doctor_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == (0 if document["ok"] else 1)
    topics = {finding["topic"] for finding in document["findings"]}
    assert topics >= {"device", "runtimes", "gpu", "inotify", "folders", "sandbox", "systemd", "configuration"}


def test_doctor_survives_a_wrong_configuration_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edgeopt.yaml"
    file.write_text("gaol: {}\n")
    assert main(["doctor", "-c", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "did you mean goal?" in printed
    assert f"edgeopt config check {file}" in printed


def test_config_check_ends_with_2_and_every_mistake_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "edgeopt.yaml"
    file.write_text("goal: {max_dorp: 1, max_drop: 2}\n")
    assert main(["config", "check", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "goal.max_dorp is unknown; did you mean max_drop?" in captured.err
    assert "goal.max_drop is 2, not a number from 0 to 1" in captured.err
    assert main(["config", "check", "--json", str(file)]) == 2
    assert len(json.loads(capsys.readouterr().out)["mistakes"]) == 2


def test_config_check_tells_keys_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edgeopt.yaml"
    file.write_text("publish: {to: ['s3://bucket']}\n")
    assert main(["config", "check", str(file)]) == 0
    assert "publish.to is set, and this version does not act on it yet" in capsys.readouterr().out


def test_config_show_prints_what_config_check_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edgeopt.yaml"
    file.write_text("inbox: in\ngoal: {max_drop: 0.5}\n")
    assert main(["config", "show", "-c", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"inbox: {tmp_path / 'in'}" in shown
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert main(["config", "check", str(again)]) == 0


GPU = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 4090\n"}
DRIVER = {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n"}
FITTING = {"tensorrt": "11.4", "tensorrt-rtx": "1.7.1.116"}


@pytest.mark.parametrize(
    ("name", "has", "gpu", "value", "said", "fix"),
    [
        ("tensorrt", (), False, "neither builds nor runs here", "no NVIDIA GPU", "--prepare"),
        ("tensorrt", (), True, "neither builds nor runs here", "not installed", "pip install 'tensorrt>=10.3,<12'"),
        ("tensorrt", ("tensorrt",), False, "11.4, neither builds nor runs here", "no NVIDIA GPU", "--prepare"),
        ("tensorrt", ("tensorrt",), True, "11.4, builds but does not run here", "cuda-bindings", "edgeopt[gpu]"),
        ("tensorrt", ("tensorrt", "cuda-bindings"), True, "11.4, builds and runs here", "timed on the GPU", ""),
        ("tensorrt-rtx", (), False, "neither builds nor runs here", "not installed", "edgeopt[tensorrt-rtx]"),
        ("tensorrt-rtx", ("tensorrt-rtx",), False, "1.7.1.116, builds but does not run here", "unverified", "accept"),
        ("tensorrt-rtx", ("tensorrt-rtx", "cuda-bindings"), True, "1.7.1.116, builds and runs here", "timed", ""),
        ("cpu", ("onnxruntime",), False, "builds and runs here", "", ""),
        ("cpu", ("onnxruntime-openvino",), False, "builds and runs here", "", ""),
        ("cpu", (), False, "neither builds nor runs here", "onnxruntime is not installed", "pip install onnxruntime"),
        ("arm", ("onnxruntime",), False, "builds but does not run here", "unverified", "edgeopt accept"),
        ("arm", (), False, "neither builds nor runs here", "not installed", "pip install onnxruntime"),
    ],
)
def test_target_says_whether_it_builds_and_runs_and_what_to_do(
    tmp_path: Path, *, name: str, has: tuple[str, ...], gpu: bool, value: str, said: str, fix: str
) -> None:
    there = host(tmp_path, {"proc/cpuinfo": "processor: 0\nflags: avx2\n"} | (GPU if gpu else {}))
    findings = checkup_targets.check_targets(
        there,
        installed_flavour=lambda flavour: FITTING[flavour.name] if flavour.name in has else None,
        version_of=lambda library: "1.0" if library in has else None,
    )
    assert [finding.name for finding in findings] == ["cpu", "arm", "tensorrt", "tensorrt-rtx"]
    found = only(findings, name)
    assert (found.value, bool(found.fix)) == (value, bool(fix))
    assert said in found.meaning
    assert fix in found.fix


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("tensorrt", "8.6.1", "written for tensorrt 10.3 to 10.16 and 11, and 8.6.1 is installed"),
        ("tensorrt-rtx", "1.6.0.44", "written for tensorrt-rtx 1.7.1.116, and 1.6.0.44 is installed"),
    ],
)
def test_release_that_the_code_was_not_held_against_builds_nothing(
    tmp_path: Path, name: str, version: str, said: str
) -> None:
    there = host(tmp_path, {"proc/cpuinfo": "processor: 0\nflags: avx2\n"} | GPU)
    findings = checkup_targets.check_targets(
        there, installed_flavour=lambda _flavour: version, version_of=lambda _: "1"
    )
    found = only(findings, name)
    assert (found.value, found.state) == (f"{version}, neither builds nor runs here", "note")
    assert said in found.meaning
    assert "pip install" in found.fix


def test_gpu_is_named_with_its_driver(tmp_path: Path) -> None:
    assert only(checkup_targets.check_gpu(host(tmp_path, {})), "nvidia").value == "none, or its driver is not loaded"
    there = host(tmp_path, GPU | DRIVER)
    assert only(checkup_targets.check_gpu(there), "nvidia").value == "NVIDIA GeForce RTX 4090, driver 550.54.15"
