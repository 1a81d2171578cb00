"""Keys of the contract that this version reads and does not act on yet, told to the operator and never passed over.

``config check`` prints these sentences. A key goes from here when its room acts on it.
"""

from __future__ import annotations

from edgeopt.config.schema import Config


def without_effect(config: Config) -> tuple[str, ...]:
    """One sentence for every key that is set to something this version does not do."""
    techniques = config.techniques
    asked = {
        "techniques.merge": techniques.merge not in ("auto", "off"),
        "intake.keys": config.intake.keys is not None,
        "publish.to": bool(config.publish.to),
        "publish.signing_key": config.publish.signing_key is not None,
    }
    return tuple(f"{key} is set, and this version does not act on it yet" for key, is_set in asked.items() if is_set)
