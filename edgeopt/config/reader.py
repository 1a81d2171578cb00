"""Configuration and job files to frozen dataclasses; the door that hostile or hurried YAML has to pass.

Text comes in, a :class:`~edgeopt.config.schema.Config` or a :class:`~edgeopt.policy.Policy` goes out, or one
:class:`~edgeopt.errors.ConfigError` with every mistake of the file, each with its line and key. ``document`` refuses
what is dangerous, ``sections`` says which keys there are, this module walks the one by the other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from edgeopt.config import document, sections, settings
from edgeopt.config.document import Mistakes
from edgeopt.config.fields import Kind, Unfit, close_to, seen
from edgeopt.config.schema import Config
from edgeopt.config.sections import Section
from edgeopt.errors import ConfigError
from edgeopt.policy import InputHint, Policy, Preprocess

SYSTEM_CONFIG = Path("/etc/edgeopt/edgeopt.yaml")
_NOWHERE = Path("/")


def find_default(*, environ: Mapping[str, str] = os.environ, system: Path = SYSTEM_CONFIG) -> Path | None:
    """The configuration used where none is named: the user's, else the system's; None where neither exists."""
    home = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    candidates = [Path(home) / "edgeopt" / "edgeopt.yaml"] if home else []
    return next((path for path in (*candidates, system) if path.is_file()), None)


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file; :class:`ConfigError` where it cannot be read or holds mistakes."""
    try:
        with path.open("rb") as file:
            text = file.read(document.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {error.strerror}",
            hint="Name a readable file with -c, or write one from deploy/edgeopt.yaml.",
        ) from error
    return loads(text, base=path.absolute().parent, name=str(path), environ=environ)


def loads(
    text: str | bytes, *, base: Path, name: str = "the configuration", environ: Mapping[str, str] = os.environ
) -> Config:
    """The configuration in a text; relative paths are taken from ``base``.

    Folders that the text does not name lie in systemd's ``STATE_DIRECTORY`` where ``environ`` has one.
    """
    mistakes = Mistakes()
    config = default(environ=environ)
    for key, node in _entries(_root(text, name), "", {*sections.FOLDERS, *sections.CONFIG}, mistakes):
        if key in sections.CONFIG:
            section = sections.CONFIG[key]
            config = replace(config, **{key: _overlaid(getattr(config, key), section, node, (key, base, mistakes))})
        else:
            folder = _value(sections.FOLDER, node, (key, base, mistakes), getattr(config, key))
            config = replace(config, **{key: folder})
    _check_folders(config, mistakes)
    _check_tls(config, mistakes)
    if config.intake.require_signature:
        # passing it over would let unsigned drops in, which is what the key is there to prevent
        mistakes.found.append((0, "intake.require_signature is true, and this version cannot check signatures yet"))
    _raise_if_any(mistakes, name)
    return config


def default(*, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of an empty file."""
    # systemd lists several folders with colons; the first one is the unit's own
    root = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    folders: dict[str, Any] = {name: f"{root}/{name}" for name in sections.FOLDERS} if root else {}
    return Config(**folders)


def overlay_job(policy: Policy, text: str | bytes, *, name: str = "job.yaml") -> Policy:
    """``policy`` with a drop's job file laid over it; what the file does not say stays as it is."""
    mistakes = Mistakes()
    known = {*sections.JOB, "inputs", "teacher", "merge"}
    for key, node in _entries(_root(text, name), "", known, mistakes):
        place = (key, _NOWHERE, mistakes)
        if key in sections.JOB:
            policy = replace(policy, **{key: _overlaid(getattr(policy, key), sections.JOB[key], node, place)})
        elif key == "inputs":
            policy = replace(policy, inputs=_inputs(node, mistakes))
        elif key == "teacher":
            policy = replace(policy, teacher=_value(sections.TEACHER, node, place, None))
        else:
            policy = replace(policy, merge=_value(sections.MERGE, node, place, False))
    _raise_if_any(mistakes, name)
    return policy


_Place = tuple[str, Path, Mistakes]
"""Where a value stands: its dotted key, the folder that relative paths are taken from, and where mistakes go."""


def _root(text: str | bytes, name: str) -> yaml.Node | None:
    try:
        return document.compose(text)
    except document.Unreadable as error:
        raise _error(name, (str(error),)) from error


def _entries(
    node: yaml.Node | None, parent: str, known: Collection[str] | None, mistakes: Mistakes
) -> Iterator[tuple[str, yaml.Node]]:
    """The known keys of a mapping with their values; the rest becomes mistakes. ``known`` None takes any name."""
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value and not node.style):
        return
    if not isinstance(node, yaml.MappingNode):
        mistakes.add(node, f"{parent or 'the file'} is {seen(node)}, not a mapping of keys")
        return
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or not key or len(key) > 256 or not key.isprintable():
            mistakes.add(key_node, f"{parent or 'the file'} has a key that is not a plain word")
        elif key in lines:
            mistakes.add(key_node, f"{_dotted(parent, key)} stands here again, after line {lines[key]}")
        elif known is not None and key not in known:
            mistakes.add(key_node, f"{_dotted(parent, key)} is unknown{_nearest(key, parent, known)}")
        else:
            yield key, value
        if key:
            lines.setdefault(key, document.line_of(key_node))


def _dotted(parent: str, key: str) -> str:
    shown = key if len(key) <= 60 else f"{key[:57]}..."
    return f"{parent}.{shown}" if parent else shown


def _nearest(key: str, parent: str, known: Collection[str]) -> str:
    elsewhere = sorted(name for name, section in sections.CONFIG.items() if name in known and key in section.keys)
    if elsewhere and not parent:
        return f"; it belongs under {' or '.join(elsewhere)}"
    if parent == settings.PRUNE and (instead := settings.of_the_other(key, known)):
        return f"; {instead}"
    close = close_to(key, known)
    return f"; did you mean {close}?" if close else f"; known are {', '.join(sorted(known))}"


def _value(kind: Kind, node: yaml.Node, place: _Place, instead: Any) -> Any:
    """What the node holds, or ``instead`` after a mistake was noted."""
    key, base, mistakes = place
    try:
        value = kind.read(node)
    except Unfit as error:
        told = str(error)
        mistakes.add(node, f"{key}{'' if told.startswith('[') else ' '}{told}")
        return instead
    if kind.is_path and value is not None:
        return os.path.normpath(base / os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser raises for ~nobody
    return value


def _overlaid(record: Any, section: Section, node: yaml.Node, place: _Place) -> Any:
    """``record`` with the keys of the mapping ``node`` laid over it."""
    parent, base, mistakes = place
    changes = {}
    for key, value in _entries(node, parent, section.keys, mistakes):
        entry, inner = section.keys[key], (f"{parent}.{key}", base, mistakes)
        if entry.settings is not None and isinstance(value, yaml.MappingNode):
            changes[entry.field] = _settings(entry.settings(value), value, inner)
        else:
            changes[entry.field] = _value(entry.kind, value, inner, getattr(record, entry.field))
    return replace(record, **changes)


def _settings(known: Mapping[str, Kind], node: yaml.MappingNode, place: _Place) -> dict[str, Any]:
    """The settings of a technique, each mistake on its own line."""
    parent, base, mistakes = place
    found = {
        key: _value(known[key], value, (f"{parent}.{key}", base, mistakes), None)
        for key, value in _entries(node, parent, known, mistakes)
    }
    if clash := settings.clash(found):
        mistakes.add(node, f"{parent} {clash}")
    return found


def _inputs(node: yaml.Node, mistakes: Mistakes) -> tuple[tuple[str, InputHint], ...]:
    hints = []
    for name, entry in _entries(node, "inputs", None, mistakes):
        parent = _dotted("inputs", name)
        hint = InputHint()
        for key, value in _entries(entry, parent, {*sections.INPUT.keys, "preprocess"}, mistakes):
            place = (f"{parent}.{key}", _NOWHERE, mistakes)
            if key == "preprocess":
                hint = replace(hint, preprocess=_overlaid(Preprocess(), sections.PREPROCESS, value, place))
            else:
                key_of = sections.INPUT.keys[key]
                hint = replace(hint, **{key_of.field: _value(key_of.kind, value, place, None)})
        hints.append((name, hint))
    return tuple(hints)


def _check_folders(config: Config, mistakes: Mistakes) -> None:
    """The four folders are distinct and none lies in another: the daemon empties some of them."""
    # through symlinks, too: two names of one folder are one folder
    folders = {name: Path(os.path.realpath(getattr(config, name))) for name in sections.FOLDERS}
    for position, first in enumerate(sections.FOLDERS):
        for second in sections.FOLDERS[position + 1 :]:
            one, other = folders[first], folders[second]
            if one == other:
                mistakes.found.append((0, f"{first} and {second} are the same folder, {one}"))
            elif one in other.parents or other in one.parents:
                inner, outer = (second, first) if one in other.parents else (first, second)
                mistakes.found.append((0, f"{inner} ({folders[inner]}) lies within {outer} ({folders[outer]})"))


def _check_tls(config: Config, mistakes: Mistakes) -> None:
    if bool(config.http.tls_certificate) != bool(config.http.tls_key):
        given, missing = (
            ("tls_certificate", "tls_key") if config.http.tls_certificate else ("tls_key", "tls_certificate")
        )
        mistakes.found.append((0, f"http.{given} is set and http.{missing} is not; they only work together"))


def _raise_if_any(mistakes: Mistakes, name: str) -> None:
    if mistakes.found:
        raise _error(name, mistakes.lines())


def _error(name: str, lines: tuple[str, ...]) -> ConfigError:
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return ConfigError(
        f"{name} has {count}",
        hint="Correct the named lines.",
        mistakes=lines,
    )
