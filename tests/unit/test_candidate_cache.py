from __future__ import annotations

from pathlib import Path

from edgeopt import device
from edgeopt.integrity import sha256_of
from edgeopt.policy import TargetRequest
from edgeopt.records import Artifact, Recipe, Step, Trial
from edgeopt.stages.cache import CandidateCache, conditions
from tests.devices import gpu_host

RECIPE = Recipe(steps=(Step.of("tidy"),))


def _trial(folder) -> Trial:
    folder.mkdir()
    file = folder / "model.onnx"
    file.write_bytes(b"weights")
    artifact = Artifact(
        path=str(file),
        format="onnx",
        sha256=sha256_of(file),
        bytes=7,
        runtime="r",
        runtime_version="1",
        session=(("threads", 2),),
    )
    return Trial(recipe=RECIPE, artifact=artifact)


def test_finished_trial_is_found_again_with_its_artifact(tmp_path) -> None:
    cache = CandidateCache(tmp_path / "cache", {"data": "a"})
    cache.keep(_trial(tmp_path / "made"))
    found = CandidateCache(tmp_path / "cache", {"data": "a"}).find(RECIPE)
    assert found is not None
    assert found.artifact is not None
    assert found.artifact.path.startswith(str(tmp_path / "cache"))


def test_other_data_or_another_recipe_is_another_entry(tmp_path) -> None:
    CandidateCache(tmp_path / "cache", {"data": "a"}).keep(_trial(tmp_path / "made"))
    assert CandidateCache(tmp_path / "cache", {"data": "b"}).find(RECIPE) is None
    assert CandidateCache(tmp_path / "cache", {"data": "a"}).find(Recipe()) is None


def test_damaged_entry_is_as_good_as_none(tmp_path) -> None:
    cache = CandidateCache(tmp_path / "cache", {})
    cache.keep(_trial(tmp_path / "made"))
    found = cache.find(RECIPE)
    assert found is not None
    assert found.artifact is not None
    for file in (tmp_path / "cache").rglob("model.onnx"):
        file.unlink()
        file.write_bytes(b"weightz")
    assert cache.find(RECIPE) is None


def test_refusal_is_remembered_too(tmp_path) -> None:
    cache = CandidateCache(tmp_path / "cache", {})
    cache.keep(Trial(recipe=RECIPE, refused="pass-failed: no pattern"))
    assert cache.find(RECIPE) == Trial(recipe=RECIPE, refused="pass-failed: no pattern")


def test_driver_counts_for_engines_and_the_same_day_gives_the_same_key(tmp_path: Path) -> None:
    old, new = (gpu_host(tmp_path / driver, driver) for driver in ("550.1", "560.2"))
    engines = device.detect(TargetRequest(name="tensorrt"), host=old)
    cache = CandidateCache(tmp_path / "cache", conditions(engines, host=old))
    cache.keep(Trial(recipe=RECIPE, refused="not right"))
    assert CandidateCache(tmp_path / "cache", conditions(engines, host=old)).find(RECIPE) is not None
    assert CandidateCache(tmp_path / "cache", conditions(engines, host=new)).find(RECIPE) is None
    processor = device.detect(TargetRequest(name="cpu"), host=old)
    assert conditions(processor, host=old) == conditions(processor, host=new)
