"""The command line as a user meets it: a process, its exit code, what it says on which stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).resolve().parents[2] / "edgeopt" / "demo"


def edgeopt(*words: str, cwd: Path, debug: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(cwd), "XDG_CONFIG_HOME": str(cwd / "none"), "EDGEOPT_DEBUG": debug}
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a configuration of its own and a few files to be wrong about."""
    (tmp_path / "good.yaml").write_text("inbox: in\npublished: out\nrejected: no\nstate: state\n")
    (tmp_path / "bad.yaml").write_text("gaol: {max_drop: 0.1}\ngoal: {max_drop: 7}\n")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    (tmp_path / "job.yaml").write_text("goal: {max_dorp: 0.1}\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"this is no model")
    return tmp_path


WRONG_USAGE = {
    "unknown command": ("optimise", "model.onnx"),
    "unknown option": ("status", "--colour"),
    "missing argument": ("optimize",),
    "no command at all": (),
    "unknown target": ("optimize", "model.onnx", "--target", "abacus"),
    "unknown objective": ("optimize", "model.onnx", "--objective", "beauty"),
    "drop that is no ratio": ("optimize", "model.onnx", "--max-drop", "5"),
    "drop that is no number": ("optimize", "model.onnx", "--max-drop", "nan"),
    "budget that is no time": ("optimize", "model.onnx", "--budget", "soon"),
    "trials below one": ("optimize", "model.onnx", "--trials", "0"),
    "missing model": ("optimize", "nowhere.onnx"),
    "missing data": ("optimize", "model.onnx", "--eval", "nowhere.npz"),
    "job file with mistakes": ("optimize", "model.onnx", "--job", "job.yaml"),
    "job file that is not there": ("optimize", "model.onnx", "--job", "nowhere.yaml"),
    "recipe that is none": ("optimize", "model.onnx", "--recipe", "[1"),
    "recipe file that is not there": ("optimize", "model.onnx", "--recipe", "nowhere.json"),
    "merge, which is not there yet": ("merge", "model.onnx", "model.onnx", "--out", "merged.onnx"),
    "configuration with mistakes": ("config", "check", "bad.yaml"),
    "configuration that is no YAML": ("status", "-c", "broken.yaml"),
    "configuration that is not there": ("serve", "-c", "nowhere.yaml"),
    "state that there is none of": ("jobs", "-c", "good.yaml", "--state", "lost"),
    "version that is no number": ("rollback", "-c", "good.yaml", "digits", "first"),
    "model nobody published": ("pin", "-c", "good.yaml", "digits"),
    "folder without a manifest": ("verify", "empty"),
    "artifact that is not there": ("bench", "nowhere"),
    "time that is none": ("bench", "model.onnx", "--seconds", "0"),
    "path that is not there": ("inspect", "nowhere.onnx"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_is_told_in_words_with_exit_code_2(case: str, folder: Path) -> None:
    done = edgeopt(*WRONG_USAGE[case], cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


REFUSED = {
    "file that is no model": ("optimize", "model.onnx"),
    "model that cannot be inspected": ("inspect", "model.onnx"),
    "no daemon ever ran": ("status", "-c", "good.yaml"),
    "nothing is known": ("explain", "-c", "good.yaml", "digits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_told_in_words_with_exit_code_1(case: str, folder: Path) -> None:
    done = edgeopt(*REFUSED[case], cwd=folder)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("edgeopt: ")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_unknown_command_names_the_nearest(folder: Path) -> None:
    assert "edgeopt optimize" in edgeopt("optimise", cwd=folder).stderr


def test_every_mistake_of_a_configuration_is_printed(folder: Path) -> None:
    said = edgeopt("status", "-c", "bad.yaml", cwd=folder).stderr
    assert "gaol" in said
    assert "goal.max_drop" in said


def test_debugging_shows_the_traceback(folder: Path) -> None:
    assert "Traceback" in edgeopt("optimise", cwd=folder, debug="1").stderr


def test_refused_model_leaves_nothing_in_the_output_folder(folder: Path) -> None:
    edgeopt("optimize", "model.onnx", "--out", "made", cwd=folder)
    assert not list((folder / "made").rglob("*"))


def test_version_is_one_line(folder: Path) -> None:
    done = edgeopt("--version", cwd=folder)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_reader_that_leaves_early_causes_no_noise(folder: Path) -> None:
    command = f"{sys.executable} -m edgeopt config show -c good.yaml | true"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.replace("# good.yaml\n", "") == ""


@pytest.mark.parametrize("words", [("config", "show"), ("doctor",)])
def test_json_is_one_document_and_nothing_else(words: tuple[str, ...], folder: Path) -> None:
    done = edgeopt(*words, "-c", "good.yaml", "--json", cwd=folder)
    assert isinstance(json.loads(done.stdout), dict), done.stderr


def test_cli_imports_nothing_heavy() -> None:
    script = (
        "import sys, importlib\n"
        "from edgeopt.cli.main import COMMANDS, build_parser\n"
        "for command in COMMANDS: build_parser(command.name)\n"
        "import edgeopt.oneshot, edgeopt.runtime\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'onnxscript'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_inspect_shows_inputs_operators_and_layers(folder: Path) -> None:
    done = edgeopt("inspect", str(SHIPPED / "digits.onnx"), cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["image", "float32", "batchx1x8x8"] in lines
    assert ["Conv", "4"] in lines
    assert json.loads(edgeopt("inspect", str(SHIPPED / "digits.onnx"), "--json", cwd=folder).stdout)["opset"] == 18


def test_inspect_tells_what_pruning_could_take_and_why_the_rest_stays(folder: Path) -> None:
    done = edgeopt("inspect", str(SHIPPED / "digits.onnx"), "--channels", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0.9.weight", "channels", "48", "Conv", "Gemm"] in lines
    assert ["0.15.weight", "Softmax", "'node_softmax'", "mixes", "all", "of", "it"] in lines
    done = edgeopt("inspect", str(SHIPPED / "digits.onnx"), "--channels", "--json", cwd=folder)
    channels = json.loads(done.stdout)["channels"]
    assert [family["units"] for family in channels["families"]] == [48] * 4
    assert channels["families"][0]["read_by"] == [{"constant": "0.3.weight", "axis": 1, "operator": "Conv"}]
    assert channels["lengths"] == "observed"


def test_names_of_a_model_cannot_act_on_the_terminal(folder: Path) -> None:
    hostile = folder / "\x1b[31mred\n.onnx"
    hostile.write_text("no model")
    done = edgeopt("optimize", hostile.name, cwd=folder)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr


def test_internal_error_is_one_line_with_exit_code_1(folder: Path) -> None:
    script = (
        "import sys\n"
        "from edgeopt.cli import main, merge\n"
        "def broken(arguments): raise ZeroDivisionError('b\\x1b[31moom')\n"
        "merge.run = broken\n"
        "sys.exit(main.main(['merge', 'a', '--out', 'b']))\n"
    )
    environment = {**os.environ, "EDGEOPT_DEBUG": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "edgeopt: internal error: ZeroDivisionError: b\\x1b[31moom"
    assert "Traceback" not in done.stderr
