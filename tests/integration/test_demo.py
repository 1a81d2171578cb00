"""`edgeopt demo` from end to end: the real daemon, the shipped model, a real version published."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_demo_publishes_a_version_and_cleans_up(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", "demo"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "recipe p50 ms speedup [95 %] size quality, drop [95 %] outcome"
    assert sum(line.endswith("winner") for line in lines) == 1
    assert re.search(r"^folder +\S+/published/digits/1$", done.stdout, re.MULTILINE)
    assert 'edgeopt_jobs_total{reason="none",result="published"} 1.0' in done.stdout
    accuracy = re.search(r"accuracy (\S+) before, (\S+) after", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97
    assert list(tmp_path.iterdir()) == []
