from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeopt.daemon import gate_bundle, gate_zip, taking_bundle
from edgeopt.daemon.intake import NotReady, Patience
from edgeopt.errors import (
    BadBundle,
    EdgeoptError,
    EmptyFile,
    ForbiddenFormat,
    NotAModel,
    TooLarge,
    UnsafeFile,
    UnsafeReference,
    UnsupportedModel,
)
from edgeopt.layout import BUNDLE_FILE, BUNDLE_FORMAT
from edgeopt.policy import WorkerLimits
from tests.bundles import members, packed
from tests.inbox import external_model, model_bytes, npz_bytes, take

WHOLE = packed(members())


def drop(inbox: Path, data: bytes) -> Path:
    path = inbox / "digits.edgeopt"
    path.write_bytes(data)
    return path


def refused(inbox: Path, data: bytes, error: type[EdgeoptError], words: str) -> None:
    """It is refused with these words and something to do, and nothing of it stays behind."""
    drop(inbox, data)
    before = {folder.name for folder in inbox.parent.glob("staging/*")}
    with pytest.raises(error, match=words) as caught:
        take(inbox)
    assert type(caught.value) is error
    assert re.fullmatch(r"[A-Z].*\.", caught.value.hint)
    staging = inbox.parent / "staging"
    assert {folder.name for folder in staging.iterdir()} == before


# ---------------------------------------------------------------- taking it
def test_a_bundle_becomes_plain_files_of_the_job_under_their_own_names(inbox: Path) -> None:
    path = drop(inbox, WHOLE)
    staged = take(inbox)
    found = {
        str(file.relative_to(staged.folder.input)): file for file in staged.folder.input.rglob("*") if file.is_file()
    }
    assert {name: file.read_bytes() for name, file in found.items()} == members()
    assert {file.stat().st_mode & 0o777 for file in found.values()} == {0o600}
    order = staged.order
    assert (order.name, order.files.model, order.files.eval) == ("digits", BUNDLE_FILE, "samples")
    assert (order.source.format, order.source.bytes) == (BUNDLE_FORMAT, len(WHOLE))
    assert order.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_bundles_are_equal_work_and_others_are_not(inbox: Path) -> None:
    drop(inbox, WHOLE)
    first, again = take(inbox).key, take(inbox).key
    drop(inbox, packed(members(b'{"other": 1}')))
    assert first == again != take(inbox).key


def test_samples_dropped_beside_a_bundle_judge_instead_of_its_own(inbox: Path) -> None:
    drop(inbox, WHOLE)
    (inbox / "digits.eval.npz").write_bytes(npz_bytes())
    (inbox / "digits.yaml").write_text("goal: {max_drop: 0.02}\n")
    files = take(inbox).order.files
    assert (files.eval, files.job_file) == ("eval.npz", "job.yaml")


def test_a_bundle_in_a_folder_is_published_under_the_folders_name(inbox: Path) -> None:
    (inbox / "numbers").mkdir()
    (inbox / "numbers" / "digits.edgeopt").write_bytes(WHOLE)
    (inbox / "numbers" / "eval.npz").write_bytes(npz_bytes())
    order = take(inbox).order
    assert (order.name, order.source.format, order.files.eval) == ("numbers", BUNDLE_FORMAT, "eval.npz")


def test_weights_beside_a_model_come_along(inbox: Path) -> None:
    model, weights = external_model("model.onnx.data", offset="0", length="16"), bytes(16)
    digests = [hashlib.sha256(data).hexdigest() for data in (model, weights)]
    address = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    folder = f"candidates/{address}"
    whole = {BUNDLE_FILE: b"{}", f"{folder}/model.onnx": model, f"{folder}/model.onnx.data": weights}
    drop(inbox, packed(whole))
    staged = take(inbox)
    assert (staged.folder.input / folder / "model.onnx.data").read_bytes() == weights
    assert staged.order.files.eval is None
    refused(inbox, packed({BUNDLE_FILE: b"{}", f"{folder}/model.onnx": model}), BadBundle, "lacks candidates/")


# ---------------------------------------------------------------- what is on its way
@pytest.mark.parametrize("length", [0, 10, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_part_of_a_bundle_is_waited_for_while_it_is_young_and_refused_later(inbox: Path, length: int) -> None:
    drop(inbox, WHOLE[:length])
    with pytest.raises(NotReady):
        take(inbox, patience=Patience(quiet_for=lambda _path: 3.0))
    words = "Copy the bundle again" if length else "Copy"
    with pytest.raises((BadBundle, EmptyFile)) as caught:
        take(inbox)
    assert caught.value.hint.startswith(words)


def test_a_bundle_whose_space_was_reserved_but_not_filled_is_waited_for(inbox: Path) -> None:
    drop(inbox, WHOLE[: len(WHOLE) // 2] + bytes(len(WHOLE) - len(WHOLE) // 2))
    with pytest.raises(NotReady):
        take(inbox, patience=Patience(quiet_for=lambda _path: 3.0))


# ---------------------------------------------------------------- damage
def test_one_flipped_bit_in_a_model_is_named(inbox: Path) -> None:
    model = model_bytes(1)
    at = WHOLE.index(model) + len(model) - 9
    damaged = WHOLE[:at] + bytes([WHOLE[at] ^ 1]) + WHOLE[at + 1 :]
    refused(
        inbox,
        damaged,
        BadBundle,
        rf"candidates/{hashlib.sha256(model).hexdigest()}/model\.onnx in the bundle has the sha256",
    )


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"notes.txt": b"hello"}, "'notes.txt', which no bundle does"),
        ({"samples/00000.pkl": b"\x80\x04."}, "which no bundle does"),
        ({"candidates/model.onnx": b""}, "which no bundle does"),
        ({f"candidates/{'0' * 64}/model.onnx": model_bytes(2)}, "another content's name"),
    ],
)
def test_members_that_no_bundle_has_are_refused(inbox: Path, contents: dict[str, bytes], words: str) -> None:
    refused(inbox, packed(members() | contents), BadBundle, words)


def test_checksums_must_be_there_and_list_every_member(inbox: Path) -> None:
    refused(inbox, packed(members(), sums=False), BadBundle, "lacks SHA256SUMS")
    some = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in list(members().items())[1:])
    refused(
        inbox, packed(members() | {"SHA256SUMS": some.encode()}, sums=False), BadBundle, f"differ in '{BUNDLE_FILE}'"
    )


def test_an_archive_or_a_model_that_is_no_bundle_is_told_so(inbox: Path) -> None:
    refused(inbox, packed({"readme.md": b"x"}), BadBundle, "holds no edgeopt-bundle-1.json")
    refused(inbox, model_bytes(), BadBundle, "no zip archive")


def test_a_bundle_under_a_models_name_is_told_what_it_is(inbox: Path) -> None:
    (inbox / "digits.onnx").write_bytes(WHOLE)
    with pytest.raises(NotAModel, match="a prepared bundle") as caught:
        take(inbox)
    assert caught.value.hint == "Rename it to NAME.edgeopt."


# ---------------------------------------------------------------- malice
@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "candidates/../../x", "..\\..\\x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(inbox: Path, name: str) -> None:
    refused(inbox, packed(members() | {name: b"x"}), UnsafeReference, "would lie outside")
    assert not (inbox.parent / "etc").exists()


def test_a_link_among_the_members_is_refused(inbox: Path) -> None:
    refused(inbox, packed(members(), mode=0o120777), UnsafeFile, "symbolic link")


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(inbox: Path) -> None:
    bomb = packed(members() | {"samples/00003.npz": bytes(50 << 20)}, method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    refused(inbox, bomb, BadBundle, "is compressed, from")


def test_a_size_that_the_archive_only_claims_is_refused(inbox: Path) -> None:
    at = WHOLE.rindex(b"PK\x01\x02")
    claimed = WHOLE[: at + 24] + (3 << 30).to_bytes(4, "little") + WHOLE[at + 28 :]
    refused(inbox, claimed, BadBundle, "is compressed, from 3221225472")


def test_two_names_for_the_same_bytes_are_refused(inbox: Path) -> None:
    directory = int.from_bytes(WHOLE[-6:-2], "little")  # the end record's field; samples are archives as well
    second = WHOLE.index(b"PK\x01\x02", directory + 4)
    third = WHOLE.index(b"PK\x01\x02", second + 4)
    overlapping = WHOLE[: third + 42] + WHOLE[second + 42 : second + 46] + WHOLE[third + 46 :]
    refused(inbox, overlapping, BadBundle, "overlaps its neighbours")


def test_more_members_than_any_bundle_has_are_refused(inbox: Path) -> None:
    many = {f"samples/{number:05d}.npz": b"" for number in range(gate_zip.MAX_MEMBERS)}
    refused(inbox, packed(members() | many), TooLarge, "members")


def test_models_and_bundles_are_held_against_the_limit(inbox: Path) -> None:
    drop(inbox, packed(members(b"{}", model_bytes(0, weights=1000))))
    with pytest.raises(TooLarge, match=r"model\.onnx' has \d+ bytes, more than 4000"):
        take(inbox, limits=WorkerLimits(model_bytes=4000))
    with pytest.raises(TooLarge, match=f"times {taking_bundle.MODELS} is 1600"):
        take(inbox, limits=WorkerLimits(model_bytes=100))


def test_a_document_without_end_is_refused(inbox: Path) -> None:
    refused(inbox, packed(members(bytes(gate_bundle.MOST_TEXT_BYTES + 1))), TooLarge, BUNDLE_FILE)


@pytest.mark.parametrize("location", ["/etc/passwd", "../model.onnx.data", "other.data"])
def test_a_model_that_takes_weights_from_elsewhere_is_refused(inbox: Path, location: str) -> None:
    refused(inbox, packed(members(b"{}", external_model(location, length="16"))), UnsafeReference, "takes weights from")


def test_pickles_are_refused_wherever_they_hide(inbox: Path) -> None:
    objects = npz_bytes(x=np.asarray([{"a": 1}], dtype=object))
    refused(inbox, packed(members() | {"samples/00001.npz": objects}), ForbiddenFormat, "pickle")
    refused(inbox, packed(members(b"{}", b"\x80\x04K\x01.")), ForbiddenFormat, "pickle")
    refused(inbox, packed(members(b"{}", b"<html>")), NotAModel, "web page")


# ---------------------------------------------------------------- other versions
def test_a_bundle_of_a_newer_version_is_told_so_whatever_else_it_holds(inbox: Path) -> None:
    newer = {"edgeopt-bundle-7.json": b"{}", "kernels/fast.bin": b"x"}
    refused(inbox, packed(newer), UnsupportedModel, "of version 7, and this edgeopt reads version 1")
