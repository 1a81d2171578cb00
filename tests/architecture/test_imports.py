"""What import-linter cannot see: that light rooms load nothing heavy, and that heavy imports wait inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "edgeopt"
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "tensorrt", "optuna", "rich", "jinja2")
INSIDE_FUNCTIONS_EVERYWHERE = {"onnxruntime", "onnxscript", "torch", "tensorrt", "optuna", "rich", "jinja2"}
LIGHT_ROOMS = ("cli", "daemon", "config")
LIGHT_MODULES = (
    "__init__",
    "__main__",
    "oneshot",
    "device",
    "layout",
    "wire",
    "protocols",
    "orders",
    "records",
    "policy",
    "errors",
    "catalogue",
)


STARTS_LIGHT = (
    "edgeopt",
    "edgeopt.__main__",
    "edgeopt.catalogue",
    "edgeopt.cli.doctor",
    "edgeopt.cli.main",
    "edgeopt.cli.serve",
    "edgeopt.config.reader",
    "edgeopt.daemon.app",
    "edgeopt.device",
    "edgeopt.oneshot",
    "edgeopt.passes",
    "edgeopt.training",
)


@pytest.mark.parametrize("module", STARTS_LIGHT)
def test_importing_a_light_module_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def imports_at_the_top(tree: ast.Module) -> Iterator[str]:
    """What a module imports when it is imported; TYPE_CHECKING blocks do not count."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module or ''}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            waiting += statement.orelse
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def modules_at_the_top(path: Path) -> set[str]:
    return set(imports_at_the_top(ast.parse(path.read_text())))


def top_imports(path: Path) -> set[str]:
    """Root names only."""
    return {name.partition(".")[0] for name in modules_at_the_top(path)}


def test_light_rooms_import_nothing_heavy_at_the_top() -> None:
    light = [path for room in LIGHT_ROOMS for path in (PACKAGE / room).rglob("*.py")]
    light += [PACKAGE / f"{name}.py" for name in LIGHT_MODULES]
    found = {str(path.relative_to(PACKAGE)): heavy for path in light if (heavy := top_imports(path) & set(HEAVY))}
    assert len(light) > 30
    assert found == {}


def test_what_is_slow_or_optional_is_imported_inside_functions_everywhere() -> None:
    found = {
        str(path.relative_to(PACKAGE)): heavy
        for path in PACKAGE.rglob("*.py")
        if (heavy := top_imports(path) & INSIDE_FUNCTIONS_EVERYWHERE) and not (heavy == {"torch"} and in_training(path))
    }
    assert found == {}


def in_training(path: Path) -> bool:
    """Modules of training may import torch at their top, since nothing imports those at its own top."""
    return path.is_relative_to(PACKAGE / "training")


def test_who_is_outside_of_training_imports_it_inside_functions_only() -> None:
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not in_training(path) and any(name.startswith("edgeopt.training") for name in modules_at_the_top(path))
    ]
    assert found == []


def test_every_module_tells_its_story() -> None:
    silent = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if len(ast.get_docstring(ast.parse(path.read_text())) or "") < 40
    ]
    assert silent == []


def test_no_module_is_called_after_nothing_in_particular() -> None:
    vague = {"utils", "util", "common", "base", "manager", "helper", "helpers", "misc"}
    assert [path for path in PACKAGE.rglob("*") if path.stem in vague] == []


BROAD_CATCHES = {"stages/attempt.py", "worker/__main__.py", "daemon/loop.py"}
"""The three places of docs/architecture.md: the candidate's attempt, the job, the daemon's loop."""


def test_only_three_places_catch_everything() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
            ):
                cleans_up_only = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if not cleans_up_only:
                    found.add(str(path.relative_to(PACKAGE)))
    assert found == BROAD_CATCHES
