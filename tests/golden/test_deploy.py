"""What is shipped for a device: the unit, the container, the scrape, the alerts. Their own tools judge them."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from edgeopt.daemon.metrics import Metrics, ModelFacts

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNIT = ROOT / "systemd/edgeopt.service"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def output(*command: str, cwd: Path | None = None) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=60)
    return done.returncode, (done.stdout + done.stderr).strip()


def unit_lines(path: Path = UNIT) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "["))]


def alerts() -> list[dict[str, object]]:
    return yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]


# ---------------------------------------------------------------- systemd
@needs_systemd
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    # verify exits 0 on unknown keys, so its silence is the test; the program itself is not installed where tests run
    unit = tmp_path / "edgeopt.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    assert output("systemd-analyze", "verify", "--man=no", str(unit)) == (0, "")


@needs_systemd
def test_systemd_does_notice_a_wrong_key(tmp_path: Path) -> None:
    unit = tmp_path / "edgeopt.service"
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    unit.write_text(text.replace("[Service]", "[Service]\nWatchdogSecs=1"))
    assert "WatchdogSecs" in output("systemd-analyze", "verify", "--man=no", str(unit))[1]


@needs_systemd
def test_the_unit_is_exposed_to_1_0_at_most() -> None:
    code, text = output("systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", str(UNIT))
    assert code == 0, text.splitlines()[-1]


def test_the_unit_reads_as_the_contract_says() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert shlex.split(service["ExecStart"]) == ["/opt/edgeopt/bin/edgeopt", "serve", "-c", "/etc/edgeopt/edgeopt.yaml"]
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert (service["KillMode"], service["TimeoutStopSec"], service["Restart"]) == ("mixed", "30s", "on-failure")
    assert (service["OOMPolicy"], service["OOMScoreAdjust"]) == ("continue", "-500")
    assert service["WatchdogSec"] == "30s"


def test_the_inbox_is_sticky_keeps_its_group_and_belongs_to_the_daemon() -> None:
    inbox = next(line.split() for line in unit_lines(ROOT / "systemd/edgeopt.tmpfiles") if "/inbox" in line)
    assert inbox[2:5] == ["3770", "edgeopt", "edgeopt-drop"]
    assert "m edgeopt edgeopt-drop" in unit_lines(ROOT / "systemd/edgeopt.sysusers")


def test_the_installer_is_a_shell_script_that_parses_and_refuses_what_it_does_not_know() -> None:
    assert output("sh", "-n", str(DEPLOY / "install.sh")) == (0, "")
    code, text = output("sh", str(DEPLOY / "install.sh"), "--bogus")
    assert code == 2
    assert "--bogus" in text


# ---------------------------------------------------------------- container
def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_container_runs_as_nobody_special_and_stops_by_sigterm() -> None:
    steps = dict(dockerfile())
    assert steps["FROM"] == "python:3.11-slim"
    assert steps["USER"] == "10001:10001"
    assert steps["STOPSIGNAL"] == "SIGTERM"
    assert "/healthz" in steps["HEALTHCHECK"]
    assert steps["VOLUME"] == '["/var/lib/edgeopt"]'
    assert (steps["ENTRYPOINT"], steps["CMD"]) == ('["edgeopt"]', '["serve", "-c", "/etc/edgeopt/edgeopt.yaml"]')


def test_the_container_copies_only_files_that_exist() -> None:
    copied = [part for word, rest in dockerfile() if word == "COPY" for part in rest.split()[:-1]]
    assert copied
    assert [part for part in copied if not (ROOT / part).exists()] == []


def test_the_container_finds_the_address_that_it_opens() -> None:
    opened = dict(line for line in dockerfile() if "sed -i" in line[1])["RUN"]
    assert r"127\.0\.0\.1:9188" in opened
    assert (DEPLOY / "edgeopt.yaml").read_text().count("127.0.0.1:9188") == 1


def test_the_containers_health_check_is_python_that_compiles() -> None:
    command = dict(dockerfile())["HEALTHCHECK"].partition("CMD ")[2]
    compile(yaml.safe_load(command)[2], "healthcheck", "exec")


# ---------------------------------------------------------------- Prometheus
@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    code, text = output("promtool", *arguments, cwd=DEPLOY)
    assert code == 0, text


def test_every_alert_has_a_case_that_fires() -> None:
    cases = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fires = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fires == {rule["alert"] for rule in alerts()}


def test_every_alert_says_what_to_do_and_how_soon() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert {"summary", "action"} <= set(rule["annotations"])


def test_alerts_and_handbook_only_use_metrics_that_the_daemon_exposes() -> None:
    exposed = exposed_names()
    handbook = (ROOT / "docs/monitoring.md").read_text()
    used = {name for rule in alerts() for name in re.findall(r"\bedgeopt_\w+", str(rule["expr"]))}
    assert used
    assert (used | set(re.findall(r"\bedgeopt_\w+", handbook))) - exposed == set()


def test_the_handbook_explains_every_metric_and_every_alert() -> None:
    handbook = (ROOT / "docs/monitoring.md").read_text()
    families = {name for name in exposed_names() if not name.endswith(("_created", "_bucket", "_sum", "_count"))}
    assert {name for name in families if f"`{name}" not in handbook} == set()
    assert {str(rule["alert"]) for rule in alerts() if f"`{rule['alert']}`" not in handbook} == set()


def exposed_names() -> set[str]:
    metrics = Metrics(build={"version": "1"}, target={"name": "cpu"})
    metrics.present.models = {"digits": ModelFacts(name="digits", version=1)}
    metrics.job_ended("published", "", seconds=1.0)
    metrics.stage_ended("ingest", 1.0)
    text = metrics.text().decode()
    return set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | set(
        re.findall(r"^(edgeopt_\w+)", text, re.MULTILINE)
    )
