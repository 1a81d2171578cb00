"""What a model on disk consists of, the hash that vouches for it, and a second name for it. Standard library only."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

_SHA256_DIGITS = 64


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content in hex; OSError where it cannot be read. Reads in chunks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_address(digests: Sequence[str]) -> str:
    """What a model is filed under: the SHA-256 of its one file, or of the hashes of its files in :func:`model_files`' order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def listed_sums(file: Path) -> dict[str, str]:
    """Plain name to SHA-256 in hex as a SHA256SUMS file lists them; ValueError where a line is none or names a path."""
    sums = {}
    *lines, rest = file.read_text(encoding="utf-8").split(
        "\n"
    )  # not splitlines: that also splits at what rot makes of a newline
    if rest:
        raise ValueError(f"{file.name} does not end with a line break")
    for line in lines:
        digest, gap, name = line.partition("  ")
        if len(digest) != _SHA256_DIGITS or not gap or name != Path(name).name or not name.strip("."):
            raise ValueError(f"{file.name} has a line that is no checksum: {line!r:.80}")
        sums[name] = digest
    return sums


def model_files(model: Path) -> tuple[Path, ...]:
    """The model file, and the file of its weights where there is one (``model.onnx.data``); an engine's, then its model's."""
    if model.suffix == ".engine":
        return (model, *model_files(model.with_suffix(".onnx")))
    data = model.with_name(model.name + ".data")
    return (model, data) if data.exists() else (model,)


def link_or_copy(file: Path, name: Path) -> None:
    """Give ``file`` the second name ``name``: a hard link, or a copy where the file system has none. Whoever changes one must replace it."""
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, name)
