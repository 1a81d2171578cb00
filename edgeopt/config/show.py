"""The effective configuration as YAML, for ``edgeopt config show``: what the reader made of the file, defaults included.

What is printed is accepted by the reader again and means the same, but for credentials in URLs, which are blotted out.
Keys whose value is a path to a secret show the path: the secret itself never enters the configuration.
"""

from __future__ import annotations

from typing import Any

import yaml

from edgeopt.config import sections
from edgeopt.config.schema import Config


def effective(config: Config) -> str:
    """Every key with the value in force, in the order of the contract."""
    return yaml.safe_dump(as_data(config), sort_keys=False, allow_unicode=True, width=120)


def as_data(config: Config) -> dict[str, Any]:
    """The same as plain data, spelled as in the file (``settle: 2s``), for ``--json``."""
    data: dict[str, Any] = {name: getattr(config, name) for name in sections.FOLDERS}
    for name, section in sections.CONFIG.items():
        record = getattr(config, name)
        data[name] = {key: entry.kind.show(getattr(record, entry.field)) for key, entry in section.keys.items()}
    return data
