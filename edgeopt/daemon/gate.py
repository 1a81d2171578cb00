"""What a dropped file may be: refused by its name, by its first bytes, and by what an archive holds.

Inside ``intake``, ahead of ``protowalk``: an open descriptor goes in, nothing comes out, or the error that names what the
file really is. This is an allow list: only what walks as a ModelProto goes on. The many names below exist so that the
person who dropped a web page, a Git LFS pointer or a pickle reads that, and not "parse error".
"""

from __future__ import annotations

import os
import re
from typing import NoReturn

from edgeopt.daemon.gate_zip import check_npz, member_names
from edgeopt.daemon.names import escaped, is_waiting
from edgeopt.errors import (
    BadData,
    EmptyFile,
    ForbiddenFormat,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeReference,
    UnsupportedModel,
)
from edgeopt.layout import BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_SUFFIX

_HEAD_BYTES = 512
_TAR_MAGIC_AT = 257
MAX_LOCATION_BYTES = 1024
MAX_LOCATION_PARTS = 4

_PICKLE_HINT = "Export the model as ONNX: a pickle runs code when it is opened, so edgeopt never opens one."
_CONVERT_HINT = "Convert the model to ONNX and drop the .onnx file."

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip data", "Unpack it and drop what is inside."),
    (0, b"BZh", "bzip2 data", "Unpack it and drop what is inside."),
    (0, b"\xfd7zXZ\x00", "xz data", "Unpack it and drop what is inside."),
    (0, b"\x28\xb5\x2f\xfd", "zstd data", "Unpack it and drop what is inside."),
    (0, b"\x04\x22\x4d\x18", "lz4 data", "Unpack it and drop what is inside."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it and drop what is inside."),
    (0, b"Rar!\x1a\x07", "a RAR archive", "Unpack it and drop what is inside."),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _CONVERT_HINT),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT_HINT),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format", "Drop the .onnx file that it was made from."),
    (0, b"GGUF", "a GGUF model", _CONVERT_HINT),
    (0, b"\x93NUMPY", "a NumPy array", "Drop arrays as NAME.calibration.npz or NAME.eval.npz beside the model."),
    (0, b"\x89PNG", "a PNG picture", "Drop the model as .onnx, samples as .npz."),
    (0, b"\xff\xd8\xff", "a JPEG picture", "Drop the model as .onnx, samples as .npz."),
    (0, b"%PDF", "a PDF document", "Drop the model as .onnx, samples as .npz."),
    (0, b"\x7fELF", "a program", "Drop the model as .onnx, samples as .npz."),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Run git lfs pull and drop the real file.",
    ),
)
_OLD_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\([dl]p\d+\n|\(i[\w.]+\n[\w.]+\n|[)}\]]q|\([dl]q", re.DOTALL)
_WEB_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml|!--)", re.IGNORECASE)


def refuse_by_name(name: str, model_format: str, *, torchscript: bool) -> None:
    """Refuse what its ending already rules out; ``torchscript`` is the operator's consent to run such code."""
    shown = escaped(name)
    if model_format in ("onnx", BUNDLE_FORMAT):
        return
    if model_format == "pickle":
        raise ForbiddenFormat(f"{shown} is a pickle by its name", hint=_PICKLE_HINT)
    if model_format == "torchscript":
        if not torchscript:
            raise ForbiddenFormat(
                f"{shown} is TorchScript by its name, which is code, and intake.torchscript is false", hint=_PICKLE_HINT
            )
        raise UnsupportedModel(
            f"{shown} is TorchScript, which this version cannot convert yet",
            hint="Export the model as ONNX with torch.onnx.export.",
        )
    if model_format == "pt2":
        raise UnsupportedModel(
            f"{shown} is an exported PyTorch program, which this version cannot convert yet",
            hint="Export the model as ONNX with torch.onnx.export(..., dynamo=True).",
        )
    raise UnsupportedModel(f"{shown} is a {model_format} model, which edgeopt does not read", hint=_CONVERT_HINT)


def refuse_by_content(fd: int, size_bytes: int) -> None:
    """Refuse what its first bytes give away, whatever its name says.

    Raises :class:`~edgeopt.errors.EmptyFile`, :class:`~edgeopt.errors.ForbiddenFormat`,
    :class:`~edgeopt.errors.NotAModel`, or :class:`~edgeopt.errors.TruncatedModel` for a file of zeros.
    """
    if size_bytes == 0:
        raise EmptyFile("the file is empty", hint="Copy the model again.")
    head = os.pread(fd, _HEAD_BYTES, 0)
    if _is_pickle(head, last=os.pread(fd, 1, size_bytes - 1)):
        raise ForbiddenFormat("the file is a pickle by its first bytes", hint=_PICKLE_HINT)
    if head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        raise ForbiddenFormat("the file is a tar archive, as old PyTorch checkpoints (pickles) are", hint=_PICKLE_HINT)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        _refuse_archive(fd, size_bytes)
    if not any(head):
        raise TruncatedModel(
            f"the file starts with {len(head)} zeros: it was allocated but not filled",
            hint="Copy the whole file again.",
        )
    if (found := _nature(head)) is not None:
        raise NotAModel(f"the file is {found[0]}", hint=found[1])
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < size_bytes:
        raise NotAModel("the file is safetensors: weights without their graph", hint=_CONVERT_HINT)


def refuse_data(fd: int, size_bytes: int, *, name: str, max_bytes: int) -> None:
    """Refuse what is no .npz of at most ``max_bytes`` of plain numbers; the messages speak of ``name``, since the model is dropped beside it.

    Raises :class:`~edgeopt.errors.EmptyFile`, :class:`~edgeopt.errors.BadData`, :class:`~edgeopt.errors.ForbiddenFormat` or :class:`~edgeopt.errors.TooLarge`.
    """
    shown = escaped(name)
    if size_bytes == 0:
        raise EmptyFile(f"{shown} is empty", hint="Copy the file again.")
    if (found := _nature(os.pread(fd, _HEAD_BYTES, 0))) is not None:
        raise BadData(f"{shown} is {found[0]}", hint=found[1])
    try:
        check_npz(fd, size_bytes, max_bytes=max_bytes)
    except (BadData, ForbiddenFormat, TooLarge) as error:
        raise type(error)(f"{shown}: {error.message}", hint=error.hint) from error


def _nature(head: bytes) -> tuple[str, str] | None:
    """(what a file is by its first bytes, what to do about it), where it is neither a model nor an archive of arrays."""
    for offset, magic, what, hint in _MAGIC:
        if head[offset:].startswith(magic):
            return what, hint
    if _WEB_PAGE.match(head):
        return (
            "a web page, most likely an error or login page saved in its place",
            "Download the file again and look at what arrives.",
        )
    return None


def _is_pickle(head: bytes, *, last: bytes) -> bool:
    """Protocols 2 to 5 have a mark; 0 and 1 are known by how they start and by their last byte."""
    marked = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return marked or (last == b"." and _OLD_PICKLE.match(head) is not None)


def _refuse_archive(fd: int, size_bytes: int) -> NoReturn:
    """Every zip is refused; what it holds decides in which words."""
    try:
        names = member_names(fd, size_bytes)
    except BadData:
        names = ()
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        raise ForbiddenFormat("the file is a PyTorch archive that holds a pickle", hint=_PICKLE_HINT)
    if any(name.endswith("archive_format") for name in names):
        raise UnsupportedModel(
            "the file is an exported PyTorch program (.pt2), which this version cannot convert yet",
            hint="Export the model as ONNX with torch.onnx.export(..., dynamo=True).",
        )
    if BUNDLE_FILE in names:
        raise NotAModel("the file is a prepared bundle", hint=f"Rename it to NAME{BUNDLE_SUFFIX}.")
    if names and all(name.endswith(".npy") for name in names):
        raise NotAModel(
            "the file is an archive of NumPy arrays",
            hint="Drop it as NAME.calibration.npz or NAME.eval.npz beside a model.",
        )
    raise NotAModel("the file is a zip archive", hint="Unpack it and drop what is inside.")


def plain_location(location: str) -> str:
    """An external-data location as a relative path that stays beside its model, or the refusal.

    A leading ``./`` is dropped. Raises :class:`~edgeopt.errors.UnsafeReference` for anything that is absolute, climbs
    up, names a drive or one of ONNX Runtime's in-memory markers, or holds a byte that another library could cut at.
    """
    plain = location.removeprefix("./")
    parts = plain.split("/")
    reasons = {
        "is empty": not plain,
        "is absolute": plain.startswith("/"),
        "climbs out of its folder": ".." in parts,
        "holds an empty or '.' part": "" in parts or "." in parts,
        "holds a backslash, a colon or a star": any(character in plain for character in "\\:*"),
        "holds a control character": any(ord(character) < 0x20 or ord(character) == 0x7F for character in plain),
        "lies in a folder whose name says that it is unfinished": any(is_waiting(part) for part in parts[:-1]),
        f"is longer than {MAX_LOCATION_BYTES} bytes": len(os.fsencode(plain)) > MAX_LOCATION_BYTES,
        f"has more than {MAX_LOCATION_PARTS} parts": len(parts) > MAX_LOCATION_PARTS,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsafeReference(
                f"the external-data location {location!a:.120} {reason}",
                hint="Put the data file beside the model and refer to it by its bare name.",
            )
    return plain
