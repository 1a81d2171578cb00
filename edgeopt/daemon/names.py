"""What the names of dropped files mean, and the safe name a model is published under.

Used by ``scan``, ``drops`` and ``intake``. A dropped name is whatever the file system allows: newlines, a leading dash,
bytes that are not UTF-8. It never becomes a path, a metric label or a log line of its own; :func:`slug` makes the public
name out of it and :func:`escaped` the text that may be shown.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from edgeopt.layout import BUNDLE_FORMAT, BUNDLE_SUFFIX

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH_DIGITS = 8
_SLUG_LENGTH = 64 - 1 - _HASH_DIGITS

MODEL_FORMATS = {
    ".onnx": "onnx",
    BUNDLE_SUFFIX: BUNDLE_FORMAT,
    ".pt2": "pt2",
    ".ts": "torchscript",
    ".pt": "torchscript",
    ".pth": "pickle",
    ".ckpt": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".joblib": "pickle",
    ".h5": "keras",
    ".hdf5": "keras",
    ".keras": "keras",
    ".tflite": "tflite",
    ".gguf": "gguf",
}
"""Endings that say "this is a model", whether it is one we take or one we refuse with a reason. ``.bin``, ``.pb`` and
``.safetensors`` are not among them: they may be a model's external data."""


def model_format(name: str) -> str | None:
    """The format a file name claims, or None where it claims to be no model."""
    return MODEL_FORMATS.get(PurePosixPath(name).suffix.lower())


def is_waiting(name: str) -> bool:
    """Whether a name says "not finished yet": such a file waits until it is renamed."""
    return name.startswith((".", "~")) or name.endswith((".tmp", ".part", ".partial", "~"))


def slug(raw_name: str, sha256: str) -> str:
    """The public name of a model: ``raw_name`` itself where it is plain, else its plain part and 8 digits of the hash.

    Never ``.`` or ``..``, never with a leading ``-`` or ``.``, at most 64 characters out of ``[A-Za-z0-9._-]``.
    """
    if _PLAIN.fullmatch(raw_name) and raw_name[0] not in "-.":
        return raw_name
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", raw_name).strip("-.")[:_SLUG_LENGTH].rstrip("-.")
    return f"{plain or 'model'}-{sha256[:_HASH_DIGITS]}"


def escaped(raw_name: str) -> str:
    """``raw_name`` as printable ASCII on one line; different names stay different."""
    return raw_name.encode("unicode_escape", "surrogatepass").decode("ascii")
