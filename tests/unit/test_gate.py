from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from inbox import model_bytes, npz_bytes

from edgeopt.daemon import gate, gate_zip
from edgeopt.errors import (
    BadData,
    EdgeoptError,
    EmptyFile,
    ForbiddenFormat,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsupportedModel,
)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_forbidden_whatever_its_name(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"state_dict": [1.0, 2.0], "f": print}, protocol=protocol)
    with pytest.raises(ForbiddenFormat):
        look(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", EmptyFile, "empty"),
        (zipped(archive__data_pkl=b"x", archive__version=b"3"), ForbiddenFormat, "pickle"),
        (zipped(m__archive_format=b"pt2"), UnsupportedModel, "pt2"),
        (zipped(readme=b"x"), NotAModel, "zip"),
        (npz_bytes(), NotAModel, "NumPy"),
        (b"PK\x03\x04" + bytes(200), NotAModel, "zip"),
        (tarred(), ForbiddenFormat, "tar"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(32), NotAModel, "7z"),
        (b"\x1f\x8b\x08" + bytes(32), NotAModel, "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(32), NotAModel, "Keras"),
        (b"<!DOCTYPE html><html>404</html>", NotAModel, "web page"),
        (b"\n  <html><body>Sign in</body></html>", NotAModel, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", NotAModel, "LFS"),
        (b"\x20\0\0\0TFL3" + bytes(32), NotAModel, "TensorFlow Lite"),
        (b"\x20\0\0\0ORTM" + bytes(32), NotAModel, "ort"),
        (struct.pack("<Q", 2) + b'{"a":1}' + bytes(32), NotAModel, "safetensors"),
        (bytes(4096), TruncatedModel, "zeros"),
    ],
)
def test_what_is_no_model_is_named_for_what_it_is(
    tmp_path: Path, data: bytes, error: type[EdgeoptError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        look(tmp_path, data)
    assert caught.value.hint.endswith(".")


def test_a_model_passes(tmp_path: Path) -> None:
    look(tmp_path, model_bytes())


@pytest.mark.parametrize("kind", ["pickle", "torchscript"])
def test_a_format_that_is_code_is_forbidden_by_name(kind: str) -> None:
    with pytest.raises(ForbiddenFormat):
        gate.refuse_by_name("a.pt", kind, torchscript=False)


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "keras", "tflite", "gguf"])
def test_a_format_that_has_no_reader_yet_says_how_to_convert(kind: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        gate.refuse_by_name("a", kind, torchscript=True)
    assert "ONNX" in caught.value.hint


def look(folder: Path, data: bytes) -> None:
    path = folder / "looked-at"
    path.write_bytes(data)
    with path.open("rb") as file:
        gate.refuse_by_content(file.fileno(), len(data))


# ---------------------------------------------------------------- npz
def check(folder: Path, data: bytes, max_bytes: int = 1 << 20) -> None:
    path = folder / "a.npz"
    path.write_bytes(data)
    with path.open("rb") as file:
        gate_zip.check_npz(file.fileno(), len(data), max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("data", "words", "hint"),
    [
        (b"<!DOCTYPE html><html>404</html>", "a.eval.npz is a web page", "look at what arrives"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a.eval.npz is a Git LFS pointer", "git lfs pull"),
        (b"\x1f\x8b" + bytes(20), "a.eval.npz is gzip data", "Unpack it"),
        (b"x" * 99, "a.eval.npz: the file is no zip archive", "numpy.savez"),
        (npz_bytes(x=np.array([{}], dtype=object)), "a.eval.npz: the array", "allow_pickle=False"),
        (b"", "a.eval.npz is empty", "Copy the file again"),
    ],
)
def test_samples_are_refused_under_their_own_name_with_what_they_are(tmp_path: Path, data, words, hint) -> None:
    path = tmp_path / "a.eval.npz"
    path.write_bytes(data)
    with (
        path.open("rb") as file,
        pytest.raises((BadData, ForbiddenFormat, EmptyFile), match=re.escape(words)) as refusal,
    ):
        gate.refuse_data(file.fileno(), len(data), name=path.name, max_bytes=1 << 20)
    assert hint in refusal.value.hint


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_passes(tmp_path: Path, save: object) -> None:
    arrays = {
        "x": np.zeros((3, 4), np.float32), "labels": np.arange(3), "scalar": np.float64(1), "none": np.zeros((0, 4)),
        "input/with:odd.name": np.zeros((2, 2), order="F"), "text": np.array(["a", "bc"]), "mask": np.zeros(4, bool),
        "half": np.zeros(5, np.float16), "c": np.zeros(2, np.complex64),
    }  # fmt: skip
    buffer = io.BytesIO()
    save(buffer, **arrays)  # type: ignore[operator]
    check(tmp_path, buffer.getvalue())


def test_an_object_array_is_forbidden(tmp_path: Path) -> None:
    with pytest.raises(ForbiddenFormat, match="pickle"):
        check(tmp_path, npz_bytes(x=np.array([{}, print], dtype=object)))


def test_a_structured_array_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(BadData):
        check(tmp_path, npz_bytes(x=np.zeros(2, [("a", "f4")])))


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    data = npz_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(BadData):
            check(tmp_path, data[:length])


def test_a_bomb_is_too_large_by_what_it_declares(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros(1 << 20, np.float64))
    assert len(buffer.getvalue()) < 1 << 16
    with pytest.raises(TooLarge):
        check(tmp_path, buffer.getvalue())


def test_a_header_that_claims_more_than_the_member_holds_is_bad_data(tmp_path: Path) -> None:
    data = npz_bytes(x=np.zeros(4)).replace(b"(4,)", b"(9,)")
    with pytest.raises(BadData, match="needs"):
        check(tmp_path, data)


@pytest.mark.parametrize("name", ["x.txt", "../x.npy", "/x.npy", "a\\b.npy", ".npy", "a\n.npy"])
def test_a_member_with_an_odd_name_is_bad_data(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), npy(np.zeros(3)))
    with pytest.raises(BadData):
        check(tmp_path, buffer.getvalue())


def test_overlapping_members_are_bad_data(tmp_path: Path) -> None:
    """Two directory entries for one body, as a bomb of the quadratic kind has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
        archive.writestr("b.npy", npy(np.zeros(3)))
    data = bytearray(buffer.getvalue())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 42, 0)
    with pytest.raises(BadData, match="overlaps"):
        check(tmp_path, bytes(data))


def test_a_name_given_twice_is_bad_data(tmp_path: Path) -> None:
    data = npz_bytes(a=np.zeros(3), b=np.zeros(3)).replace(b"b.npy", b"a.npy")
    with pytest.raises(BadData, match="twice"):
        check(tmp_path, data)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
