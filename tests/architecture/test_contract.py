"""Every command, key, metric and page of docs/contract.md exists in the code and is documented.

The contract is read as the text that it is: what it lists in code spans and its configuration block is what users rely on.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from edgeopt.cli.main import COMMANDS
from edgeopt.config import reader, sections, settings, show
from edgeopt.config.fields import Kind
from edgeopt.config.schema import Config
from edgeopt.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md") if path.name != "contract.md"}
SOURCES = {path: path.read_text() for path in (ROOT / "edgeopt").rglob("*.py")}


def section(title: str) -> str:
    """The contract's text below a heading, up to the next one."""
    match = re.search(rf"^## {re.escape(title)}.*?$(.*?)(?=^## |\Z)", CONTRACT, re.MULTILINE | re.DOTALL)
    assert match, f"the contract has no section {title}"
    return match.group(1)


def contract_commands() -> list[str]:
    rows = [re.split(r"(?<!\\)\|", line)[1] for line in section("Commands").splitlines() if line.startswith("| `")]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    return sorted({span.removeprefix("edgeopt ").split()[0] for span in spans})


def contract_keys() -> list[str]:
    keys = []
    for line in section("Configuration").splitlines():
        if match := re.match(r"(\w+): +\{(.*)\}$", line):
            inner = re.sub(r"\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"", "", match.group(2))
            keys += [f"{match.group(1)}.{key}" for key in re.findall(r"(?:^|, *)(\w+)(?::|\.\.\.)", inner)]
    return keys


def contract_metrics() -> list[str]:
    return sorted(set(re.findall(r"`(edgeopt_\w+)", section("Metrics"))))


def test_the_contract_is_read_at_all() -> None:
    assert {"demo", "serve", "optimize", "config", "gc"} <= set(contract_commands())
    assert {"watch.settle", "goal.max_drop", "limits.inbox_free", "http.tls", "log.format"} <= set(contract_keys())
    assert len(contract_keys()) > 35
    assert len(contract_metrics()) > 20


@pytest.mark.parametrize("command", contract_commands())
def test_every_command_of_the_contract_exists_and_is_documented(command: str) -> None:
    assert command in {known.name for known in COMMANDS}
    assert re.search(rf"`edgeopt {command}\b", DOCS["cli.md"])


def test_every_command_that_exists_is_in_the_contract() -> None:
    assert {known.name for known in COMMANDS} == set(contract_commands())


@pytest.mark.parametrize("key", contract_keys())
def test_every_key_of_the_contract_exists_and_is_documented(key: str) -> None:
    parent, _, name = key.partition(".")
    spelled = [known for known in sections.CONFIG[parent].keys if known == name or known.startswith(f"{name}_")]
    assert spelled
    assert all(f"`{parent}.{known}`" in DOCS["configuration.md"] for known in spelled)


def test_every_key_that_exists_is_documented_with_its_default() -> None:
    shown = show.as_data(Config())
    documented = dict(re.findall(r"^\| `([\w.]+)` \| `?([^|`]+)`? \|", DOCS["configuration.md"], re.MULTILINE))
    for name, known in sections.CONFIG.items():
        for key in known.keys:
            told = documented[f"{name}.{key}"].strip()
            value = None if told == "none" else told
            text = f"{name}: {{{key}: {'null' if value is None else value}}}"
            assert reader.loads(text, base=ROOT, environ={}) == Config(), text
            assert (value is None) == (shown[name][key] is None)


@pytest.mark.parametrize(
    ("page", "known"),
    [
        ("channel-pruning", settings.PRUNE_CHANNELS),
        ("sparse-weights", settings.PRUNE_WEIGHTS),
        ("distillation", settings.DISTILL),
    ],
)
def test_every_setting_of_a_technique_is_documented_on_its_page(page: str, known: dict[str, Kind]) -> None:
    text = (ROOT / "docs" / "techniques" / f"{page}.md").read_text() + DOCS["pruning.md"]
    assert [name for name in known if f"`{name}`" not in text] == []


def test_settings_that_the_documentation_shows_are_taken() -> None:
    pages = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    shown = {found for page in pages for found in re.findall(r"\b((?:prune|distill): \{[^{}]*\})", page)}
    assert shown
    for example in shown:
        reader.overlay_job(Policy(), f"techniques:\n  {example}\n")


def test_example_configuration_shows_every_key_with_its_default() -> None:
    example = (ROOT / "deploy" / "edgeopt.yaml").read_text()
    data = yaml.safe_load(example)
    assert reader.loads(example, base=ROOT, environ={}) == Config()
    assert set(data) == {*sections.FOLDERS, *sections.CONFIG}
    assert {name: set(data[name]) for name in sections.CONFIG} == {
        name: set(known.keys) for name, known in sections.CONFIG.items()
    }


@pytest.mark.parametrize("metric", contract_metrics())
def test_every_metric_of_the_contract_exists_and_is_documented(metric: str) -> None:
    # prometheus_client adds the endings _total and _info itself
    names = {metric, metric.removesuffix("_total"), metric.removesuffix("_info")}
    daemon = [text for path, text in SOURCES.items() if path.parent.name == "daemon"]
    assert any(f'"{name}"' in text for name in names for text in daemon)
    assert f"`{metric}" in DOCS["monitoring.md"]


@pytest.mark.parametrize("page", ["/metrics", "/healthz", "/readyz", "/api/v1/jobs", "/api/v1/models"])
def test_every_page_of_the_contract_exists_and_is_documented(page: str) -> None:
    assert page in section("HTTP")
    assert any(page in text for path, text in SOURCES.items() if path.parent.name == "daemon")
    assert any(page in text for text in DOCS.values())


def test_quantizers_of_the_configuration_are_passes_of_the_catalogue() -> None:
    from edgeopt.catalogue import PASSES

    assert set(sections.QUANTIZERS) <= set(PASSES)
    assert {name for name in PASSES if name.startswith("quantize_")} <= set(sections.QUANTIZERS)


def test_features_of_the_configuration_are_known_to_the_device() -> None:
    from edgeopt.device import FEATURES

    assert set(sections.ARM_FEATURES) <= set(FEATURES)


def test_links_between_the_documents_lead_somewhere() -> None:
    for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"
