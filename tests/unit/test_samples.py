"""Calibration and eval data: what fits is read sample by sample, what does not is refused with all that is wrong."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.calibrate.samples import SampleSet, open_samples
from edgeopt.errors import BadData
from edgeopt.policy import InputHint, Preprocess
from edgeopt.records import Signature, StatePair, TensorSpec

IMAGE = TensorSpec(name="image", dtype="float32", shape=("n", 3, 4, 4))
IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"))
MASK = TensorSpec(name="mask", dtype="int64", shape=("batch", "sequence"))


def signature(*inputs: TensorSpec, states: tuple[StatePair, ...] = ()) -> Signature:
    return Signature(format="onnx", opset=17, inputs=inputs, outputs=(), operators=(), states=states)


def opened(tmp_path: Path, inputs: Signature, *, compressed: bool = False, **arrays: Any) -> SampleSet:
    path = tmp_path / "calibration.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return open_samples(path, inputs, unpack_to=tmp_path / "work")


def refusal(tmp_path: Path, inputs: Signature, **arrays: Any) -> str:
    with pytest.raises(BadData) as caught:
        opened(tmp_path, inputs, **arrays)
    assert "the model takes" in caught.value.hint
    return caught.value.message


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)


# ---------------------------------------------------------------- what fits
@pytest.mark.parametrize("compressed", [False, True])
def test_array_of_the_input_s_rank_is_cut_into_batches_of_one(tmp_path: Path, compressed: bool) -> None:
    data = pictures(5)
    samples = opened(tmp_path, signature(IMAGE), compressed=compressed, image=data, labels=np.arange(5))
    assert len(samples) == 5
    np.testing.assert_array_equal(samples.feeds(3)["image"], data[3:4])
    assert [feeds["image"].shape for feeds in samples] == [(1, 3, 4, 4)] * 5
    np.testing.assert_array_equal(samples.labels, np.arange(5))


def test_array_with_one_more_axis_holds_a_whole_inference_a_row(tmp_path: Path) -> None:
    rate = TensorSpec(name="rate", dtype="int64", shape=())
    sound = TensorSpec(name="sound", dtype="float32", shape=("?", "?"))
    data = np.ones((4, 1, 7), np.float32)
    samples = opened(tmp_path, signature(sound, rate), sound=data, rate=np.full(4, 16000))
    assert samples.feeds(0)["sound"].shape == (1, 7)
    assert samples.feeds(0)["rate"].shape == ()
    assert samples.feeds(0)["rate"] == 16000


def test_fixed_batch_of_the_model_takes_that_many_rows(tmp_path: Path) -> None:
    fixed = TensorSpec(name="x", dtype="float32", shape=(4, 2))
    data = np.arange(20, dtype=np.float32).reshape(10, 2)
    samples = opened(tmp_path, signature(fixed), x=data, labels=np.zeros(8, np.int64))
    assert len(samples) == 2
    np.testing.assert_array_equal(samples.feeds(1)["x"], data[4:8])
    assert samples.labels is None
    assert "not one class for each inference" in samples.notes[0]


def test_lone_array_goes_to_the_lone_input_whatever_it_is_called(tmp_path: Path) -> None:
    samples = opened(tmp_path, signature(IMAGE), arr_0=pictures(2), labels=np.array([1, 0]))
    assert set(samples.feeds(0)) == {"image"}


def test_safe_casts_are_done_and_unsafe_ones_are_refused(tmp_path: Path) -> None:
    ids = TensorSpec(name="ids", dtype="int32", shape=("n",))
    weights = TensorSpec(name="weights", dtype="float32", shape=("n",))
    samples = opened(tmp_path, signature(ids, weights), ids=np.arange(3), weights=np.array([0.5, 1, 2]))
    assert {name: array.dtype.name for name, array in samples.feeds(0).items()} == {
        "ids": "int32",
        "weights": "float32",
    }
    message = refusal(tmp_path, signature(ids, weights), ids=np.array([1 << 40]), weights=np.array([1e300]))
    assert "which int32 cannot hold" in message
    assert "which float32 cannot hold" in message
    assert "'ids' is float64, but the model takes int32" in refusal(
        tmp_path, signature(ids, weights), ids=np.array([1.0]), weights=np.array([1.0])
    )


def test_big_endian_and_fortran_order_arrays_read_as_what_they_mean(tmp_path: Path) -> None:
    data = pictures(3)
    samples = opened(tmp_path, signature(IMAGE), image=np.asfortranarray(data.astype(">f4")))
    np.testing.assert_array_equal(samples.feeds(2)["image"], data[2:3])
    assert samples.feeds(2)["image"].dtype == np.dtype("=f4")


def test_states_that_nobody_gave_begin_as_zeros(tmp_path: Path) -> None:
    state = TensorSpec(name="state", dtype="float32", shape=(2, "n", 3))
    pair = (StatePair(input="state", output="stateN"),)
    samples = opened(tmp_path, signature(IMAGE, state, states=pair), image=pictures(2))
    np.testing.assert_array_equal(samples.feeds(1)["state"], np.zeros((2, 1, 3), np.float32))
    assert "'state'" in samples.notes[0]


def test_labels_finer_than_one_a_sample_are_noted_and_left_out(tmp_path: Path) -> None:
    samples = opened(tmp_path, signature(IMAGE), image=pictures(2), labels=np.zeros((2, 4, 4), np.uint8))
    assert samples.labels is None
    assert samples.notes


def test_content_hash_does_not_depend_on_how_the_file_is_packed(tmp_path: Path) -> None:
    plain = opened(tmp_path, signature(IMAGE), image=pictures(2), labels=np.array([0, 1]))
    packed = opened(tmp_path, signature(IMAGE), compressed=True, labels=np.array([0, 1]), image=pictures(2))
    other = opened(tmp_path, signature(IMAGE), image=pictures(2), labels=np.array([1, 1]))
    assert plain.origin == packed.origin
    assert plain.origin.sha256 != other.origin.sha256


def test_index_outside_of_the_set_is_an_index_error(tmp_path: Path) -> None:
    samples = opened(tmp_path, signature(IMAGE), image=pictures(2))
    for index in (-1, 2):
        with pytest.raises(IndexError):
            samples.feeds(index)


# ---------------------------------------------------------------- what does not fit
def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    broken = np.ones((3, 9))
    broken[0, 0] = np.nan
    message = refusal(
        tmp_path, signature(IMAGE, IDS, MASK), image=broken, ids=np.ones((2, 9), np.int64), extra=np.ones(2)
    )
    assert message.startswith("calibration.npz does not fit the model: ")
    assert "'extra' is not an input" in message
    assert "'mask' is missing" in message
    assert "'image' has 2 axes [3, 9], not the 4" in message
    assert "'image' holds 1 NaN and 0 infinite values" in message


def test_fixed_dimensions_must_agree(tmp_path: Path) -> None:
    message = refusal(tmp_path, signature(IMAGE), image=np.ones((2, 1, 4, 4), np.float32))
    assert "'image' is [1, 1, 4, 4] a sample, but the model takes [n, 3, 4, 4]" in message


def test_dimensions_of_one_name_must_agree(tmp_path: Path) -> None:
    message = refusal(tmp_path, signature(IDS, MASK), ids=np.ones((2, 8), np.int64), mask=np.ones((2, 9), np.int64))
    assert "the dimension 'sequence' is 8 in 'ids', but 9 in 'mask'" in message


def test_numbers_of_samples_must_agree(tmp_path: Path) -> None:
    message = refusal(tmp_path, signature(IDS, MASK), ids=np.ones((2, 8), np.int64), mask=np.ones((3, 8), np.int64))
    assert "different numbers of samples: {'ids': 2, 'mask': 3}" in message


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.arange(3), "has 3 entries for 2 samples"),
        (np.array([0.5, 1.0]), "is float64 [2], not a list of class indices"),
        (np.array([-1, 0]), "holds -1"),
        (np.array(3), "is int64 [], not a list"),
    ],
)
def test_labels_that_are_no_class_a_sample_are_refused(tmp_path: Path, labels: np.ndarray, reason: str) -> None:
    assert reason in refusal(tmp_path, signature(IMAGE), image=pictures(2), labels=labels)


@pytest.mark.parametrize("data", [np.ones((0, 3, 4, 4), np.float32), np.array(1.0), np.ones((2, 3, 4, 0), np.float32)])
def test_empty_arrays_are_refused(tmp_path: Path, data: np.ndarray) -> None:
    refusal(tmp_path, signature(IMAGE), image=data)


# ---------------------------------------------------------------- hostile files
class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/edgeopt-payload-ran",)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def write_npz(tmp_path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = tmp_path / "calibration.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


GOOD = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }", b"\0" * 8)


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Payload()])),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 4),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", b"\0" * 4),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", b"\0" * 4),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", b"\0" * 4),
        npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }", b"\0" * 4),
        npy("__import__('os').system('true')"),
        npy("{" * 3000),
        npy("(" * 4000),
        npy("{'descr': '<f4'}"),
        b"\x93NUMPY\x09\x00",
        pickle.dumps(Payload()),
        b"",
    ],
)
def test_member_that_is_no_plain_array_is_refused_and_nothing_runs(tmp_path: Path, content: bytes) -> None:
    path = write_npz(tmp_path, ("x.npy", content))
    with pytest.raises(BadData):
        open_samples(path, signature(TensorSpec(name="x", dtype="float32", shape=("n",))), unpack_to=tmp_path / "work")
    assert not Path("/tmp/edgeopt-payload-ran").exists()


@pytest.mark.parametrize(
    "names", [("../x.npy",), ("x.txt",), ("a/../../x.npy",), ("data.pkl", "x.npy"), ("x.npy", "x.npy")]
)
def test_archive_with_odd_members_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.warns(UserWarning, match="Duplicate") if len(set(names)) < len(names) else memoryview(b""):
        path = write_npz(tmp_path, *((name, GOOD) for name in names))
    with pytest.raises(BadData):
        open_samples(path, signature(IDS), unpack_to=tmp_path / "work")


def test_wrong_checksum_is_found_in_stored_and_in_compressed_members(tmp_path: Path) -> None:
    spec = signature(TensorSpec(name="x", dtype="float32", shape=("n", 2)))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_npz(tmp_path, ("x.npy", GOOD), method=method)
        content = bytearray(path.read_bytes())
        content[30 + len("x.npy") + (len(GOOD) - 3 if method == zipfile.ZIP_STORED else 40)] ^= 1
        path.write_bytes(content)
        with pytest.raises(BadData, match="damaged"):
            open_samples(path, spec, unpack_to=tmp_path / "work")


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path, ("a.npy", GOOD), ("b.npy", GOOD))
    content = bytearray(path.read_bytes())
    # the second directory entry points at the first member's data
    place = content.rindex(b"PK\x01\x02")
    content[place + 42 : place + 46] = struct.pack("<I", 0)
    path.write_bytes(content)
    with pytest.raises(BadData, match="overlap"):
        open_samples(path, signature(IDS), unpack_to=tmp_path / "work")


def test_zip_bomb_is_refused_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.calibrate import samples

    monkeypatch.setattr(samples, "MOST_BYTES", 1 << 20)
    path = write_npz(tmp_path, ("x.npy", b"\0" * (8 << 20)), method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(BadData, match="unpacks to 8,388,608 bytes"):
        open_samples(path, signature(IDS), unpack_to=tmp_path / "work")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip file at all"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.npz").write_bytes(content)
    with pytest.raises(BadData):
        open_samples(tmp_path / "calibration.npz", signature(IDS), unpack_to=tmp_path / "work")


def test_link_to_data_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, ("x.npy", GOOD)).rename(tmp_path / "other.npz")
    (tmp_path / "calibration.npz").symlink_to("other.npz")
    with pytest.raises(BadData, match="neither a plain file nor a folder"):
        open_samples(tmp_path / "calibration.npz", signature(IDS), unpack_to=tmp_path / "work")


# ---------------------------------------------------------------- folders
def test_folder_of_arrays_is_read_like_an_npz(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    np.save(folder / "image.npy", pictures(3))
    np.save(folder / "labels.npy", np.arange(3))
    samples = open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work")
    assert samples.origin == opened(tmp_path, signature(IMAGE), image=pictures(3), labels=np.arange(3)).origin


def test_folder_of_archives_holds_a_sample_each_of_any_length(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    for length in (3, 5):
        np.savez(folder / f"{length}.npz", ids=np.full((1, length), length), mask=np.ones((1, length), np.int64))
    np.save(folder / "labels.npy", np.array([1, 0]))
    samples = open_samples(folder, signature(IDS, MASK), unpack_to=tmp_path / "work")
    assert [feeds["ids"].tolist() for feeds in samples] == [[[3] * 3], [[5] * 5]]
    assert samples.labels is not None
    np.savez(folder / "6.npz", ids=np.ones(6, np.int64))
    with pytest.raises(BadData) as caught:
        open_samples(folder, signature(IDS, MASK), unpack_to=tmp_path / "work")
    assert "'ids' in '6.npz' has 1 axes, not 2" in caught.value.message
    assert "'6.npz' lacks 'mask'" in caught.value.message


def test_folder_with_links_subfolders_or_a_mix_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    with pytest.raises(BadData, match="holds nothing"):
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work")
    np.save(folder / "image.npy", pictures(1))
    (folder / "notes.txt").touch()
    with pytest.raises(BadData, match=r"'\.npy', '\.txt'"):
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work")
    (folder / "notes.txt").unlink()
    (folder / "link.npy").symlink_to("/etc/passwd")
    with pytest.raises(BadData, match="no plain files"):
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work")


def test_pictures_need_stated_preprocessing(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    with pytest.raises(BadData, match="without how to prepare them"):
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work")


HINT = (("image", InputHint(preprocess=Preprocess(resize=4, crop=4, mean=(127.0,), std=(128.0,)))),)


@pytest.mark.skipif(importlib.util.find_spec("PIL") is not None, reason="Pillow is installed here")
def test_pictures_without_pillow_say_how_to_get_it(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    with pytest.raises(BadData, match="need Pillow") as caught:
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work", hints=HINT)
    assert "pip install pillow" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed; it is optional")
def test_pictures_become_tensors_as_stated(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "calibration"
    folder.mkdir()
    for name, level in (("a", 255), ("b", 127)):
        Image.fromarray(np.full((8, 16, 3), level, np.uint8)).save(folder / f"{name}.png")
    np.save(folder / "labels.npy", np.array([1, 0]))
    samples = open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work", hints=HINT)
    np.testing.assert_array_equal(samples.feeds(0)["image"], np.ones((1, 3, 4, 4), np.float32))
    np.testing.assert_array_equal(samples.feeds(1)["image"], np.zeros((1, 3, 4, 4), np.float32))
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "GIF")
    (folder / "c.png").write_bytes(content.getvalue())
    with pytest.raises(BadData, match=r"'c\.png' cannot be decoded"):
        open_samples(folder, signature(IMAGE), unpack_to=tmp_path / "work", hints=HINT)
