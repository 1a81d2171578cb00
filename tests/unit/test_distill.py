"""The pass ``distill`` and its loop: closer to the teacher, the same bytes, resumable, never worse, in time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt.errors import PassFailed  # noqa: E402 - torch may be missing
from edgeopt.passes import QuantizeStatic  # noqa: E402
from edgeopt.training import checkpoint, distill, loop, mode  # noqa: E402
from edgeopt.training import course as courses  # noqa: E402
from edgeopt.training.course import Course  # noqa: E402
from edgeopt.training.descent import Descent  # noqa: E402
from edgeopt.training.lesson import Lesson, Part  # noqa: E402
from edgeopt.training.replay import Replay, write_back  # noqa: E402
from edgeopt.training.teacher import engage  # noqa: E402

QUICK = {"steps": 40, "batch": 4, "learning_rate": 1e-3, "patience": 100}


def pair(build=builders.conv_net, *, samples: int = 12, deviation: float = 0.1, **given):
    """A student that is a few percent off its teacher, and evidence with that teacher."""
    teacher = build()
    student = builders.nearby(teacher, seed=1, deviation=deviation)
    return student, builders.FakeEvidence(teacher, samples=samples, **given)


def distance(model: ir.Model, teacher: ir.Model) -> float:
    """Mean squared difference of the first outputs on inputs that no training saw."""
    differences = []
    for seed in range(100, 108):
        feeds = builders.feeds(teacher, seed=seed)
        ours, theirs = (builders.run(each, feeds)[0] for each in (model, teacher))
        differences.append(float(np.square(ours - theirs).mean()))
    return float(np.mean(differences))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "mse", "inputs": "noise"},
        {"loss": "features", "inputs": "calibration"},
        {"optimizer": "sgd", "learning_rate": 0.02, "schedule": "linear"},
        {"ema": 0.9, "l1": 1e-6, "weight_decay": 1e-3, "dropout": 0.05, "schedule": "constant"},
        {"precision": "bfloat16"},
        {"learning_rate": "auto"},
    ],
    ids=str,
)
def test_student_comes_closer_to_its_teacher_on_inputs_it_never_saw(settings) -> None:
    student, evidence = pair()
    made = distill.Distill().apply(student, {**QUICK, **settings}, evidence)
    assert distance(made, evidence.teacher) < 0.7 * distance(student, evidence.teacher)


def test_student_that_is_its_own_teacher_is_left_as_it_is() -> None:
    model = builders.conv_net()
    with pytest.raises(PassFailed, match=r"did not improve on the student.* it does what its teacher does") as failure:
        distill.Distill().apply(model, QUICK, builders.FakeEvidence(model, samples=8))
    assert failure.value.hint


def test_diverging_loss_refuses_the_student_with_the_reason() -> None:
    student, evidence = pair()
    wild = {**QUICK, "optimizer": "sgd", "learning_rate": 1e12, "clip": 0.0, "schedule": "constant"}
    with pytest.raises(PassFailed, match=r"the loss is|held-out loss went from") as failure:
        distill.Distill().apply(student, wild, evidence)
    assert failure.value.hint == "Lower learning_rate."


def test_runaway_loss_is_noticed_while_it_is_finite() -> None:
    student, evidence = pair(deviation=0.01)
    wild = {**QUICK, "learning_rate": 0.5, "schedule": "constant"}
    with pytest.raises(PassFailed, match=r"the held-out loss went from .* with a learning rate of 0\.5"):
        distill.Distill().apply(student, wild, evidence)


def test_student_without_a_teacher_or_samples_is_refused() -> None:
    student, evidence = pair()
    evidence.teacher = None
    with pytest.raises(PassFailed, match="no teacher"):
        distill.Distill().apply(student, QUICK, evidence)
    with pytest.raises(PassFailed, match="no real calibration samples"):
        distill.Distill().apply(student, QUICK, builders.FakeEvidence(student, samples=0))


def test_made_up_samples_teach_nothing() -> None:
    student, evidence = pair()
    evidence.synthetic = True
    with pytest.raises(PassFailed, match="no real calibration samples"):
        distill.Distill().apply(student, QUICK, evidence)


def test_teacher_of_another_interface_is_refused_and_one_of_other_names_is_taken() -> None:
    student = builders.mlp()
    foreign = builders.mlp(width=48, seed=9)
    foreign.graph.inputs[0].name = "vectors"
    foreign.graph.outputs[0].name = "scores"
    evidence = builders.FakeEvidence(student, samples=12, teacher=foreign)
    made = distill.Distill().apply(student, {**QUICK, "learning_rate": 1e-2}, evidence)
    feeds = builders.feeds(student, seed=50)
    right = builders.run(foreign, {"vectors": feeds["rows"]})[0]
    before, after = (np.abs(builders.run(model, feeds)[0] - right).mean() for model in (student, made))
    assert after < before
    evidence.teacher = builders.lstm()
    with pytest.raises(PassFailed, match="the teacher has the inputs"):
        distill.Distill().apply(student, QUICK, evidence)


def test_int8_aware_student_loses_less_when_it_is_quantized() -> None:
    teacher = builders.relu_chain(seed=10)
    evidence = builders.FakeEvidence(teacher, samples=24)
    quantize = {"method": "min_max"}
    plain = QuantizeStatic().apply(teacher, quantize, evidence)
    # the student is the teacher itself: what it can learn is to be rounded
    settings = {**QUICK, "steps": 120, "fake_quantize": "int8", "loss": "mse"}
    aware = QuantizeStatic().apply(distill.Distill().apply(teacher, settings, evidence), quantize, evidence)
    assert distance(aware, teacher) < 0.5 * distance(plain, teacher)


def test_sparse_weights_stay_sparse() -> None:
    student, evidence = pair()
    weights = {name: weight.detach().numpy().copy() for name, weight in Replay(student).weights.items()}
    name = next(name for name, weight in weights.items() if weight.ndim == 4)
    thinned = weights[name].copy()
    thinned.ravel()[::2] = 0.0
    sparse = write_back(student, {name: thinned})
    made = distill.Distill().apply(sparse, QUICK, evidence)
    trained = Replay(made).weights[name].detach().numpy()
    assert (trained.ravel()[::2] == 0).all() and not np.array_equal(trained, thinned)
    dense = distill.Distill().apply(sparse, {**QUICK, "keep_zeros": False}, evidence)
    assert (Replay(dense).weights[name].detach().numpy() != 0).mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"stepps": 3}, "no setting 'stepps'"),
    ],
)
def test_senseless_setting_is_refused_by_name(settings, message) -> None:
    student, evidence = pair()
    with pytest.raises(PassFailed, match=message) as failure:
        distill.Distill().apply(student, settings, evidence)
    assert failure.value.hint


def test_whole_number_serves_where_a_number_is_due() -> None:
    assert courses.read({"weight_decay": 1, "steps": 5}, technique="distill") == Course(weight_decay=1.0, steps=5)


def test_device_without_room_for_one_sample_is_told_so() -> None:
    tiny = replace(builders.TARGET, memory_bytes=20_000)
    student, evidence = pair(target=tiny)
    with pytest.raises(PassFailed, match="training needs"):
        distill.Distill().apply(student, QUICK, evidence)


# ---------------------------------------------------------------- the loop itself
class Clock:
    """Ticks one second at every look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def trained(watch: loop.Watch, *, student=None, evidence=None, **settings) -> loop.Outcome:
    if student is None or evidence is None:
        student, evidence = pair()
    course = Course(**{**QUICK, **settings})
    replay = Replay(student)
    entered = mode.enter(student, replay, course, evidence)
    with loop.steady(1), Lesson(student, replay, engage(student, evidence), course, folder=None) as lesson:
        return loop.train(replay, lesson, course, replace(watch, on_mode=entered.set))


def same(one: loop.Outcome, other: loop.Outcome) -> bool:
    return all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "sgd", "ema": 0.9, "dropout": 0.2, "learning_rate": 0.01}, {"learning_rate": 0.0}],
    ids=str,
)
def test_interrupted_training_goes_on_to_the_very_same_weights(settings, tmp_path: Path) -> None:
    whole = trained(loop.Watch(), **settings)
    file = tmp_path / "training.npz"

    def interrupt(share: float, _words: str) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    often = loop.Watch(checkpoint=file, checkpoint_every_s=0.0, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(often, **settings)
    kept = checkpoint.load(file)
    assert kept is not None and 10 < kept.facts["step"] < 30
    resumed = trained(replace(often, progress=None), **settings)
    assert same(whole, resumed) and resumed.standing == whole.standing
    assert not file.exists()


class Ended(BaseException):
    """What a test's process does on SIGTERM."""


@pytest.fixture
def ended_by_sigterm() -> Iterator[None]:
    def end(_number: int, _frame: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield
    assert signal.signal(signal.SIGTERM, before) is end, "the training leaves the handler as it was"


@pytest.mark.usefixtures("ended_by_sigterm")
def test_sigterm_in_mid_training_is_obeyed_once_the_state_is_written_down(tmp_path: Path) -> None:
    whole, file = trained(loop.Watch()), tmp_path / "training.npz"

    def stop(share: float, _words: str) -> None:
        if share >= 0.5:
            signal.raise_signal(signal.SIGTERM)

    seldom = loop.Watch(checkpoint=file, checkpoint_every_s=3600.0, progress=stop)
    with pytest.raises(Ended):
        trained(seldom)
    kept = checkpoint.load(file)
    assert kept is not None and kept.facts["step"] == QUICK["steps"] // 2
    resumed = trained(replace(seldom, progress=None))
    assert same(whole, resumed) and resumed.standing == whole.standing


def test_training_gives_the_same_weights_twice_and_others_for_another_seed() -> None:
    once, again = (trained(loop.Watch(), dropout=0.2, learning_rate=1e-4) for _ in range(2))
    assert same(once, again)
    assert not same(once, trained(loop.Watch(), dropout=0.2, learning_rate=1e-4, seed=1))


def test_deadline_ends_the_training_with_the_best_so_far() -> None:
    outcome = trained(loop.Watch(clock=Clock(), deadline_s=50.0), steps=400)
    assert outcome.standing.ended == "the time was over"
    assert 10 < outcome.standing.step < 50
    assert outcome.standing.best < outcome.standing.first


def test_deadline_that_is_over_already_trains_nothing() -> None:
    outcome = trained(loop.Watch(clock=Clock(), deadline_s=0.5))
    assert outcome.standing.step == 0 and outcome.standing.best == outcome.standing.first


def test_training_ends_early_where_nothing_is_gained() -> None:
    outcome = trained(loop.Watch(), patience=3, learning_rate=0.05, schedule="constant")
    assert outcome.standing.ended == "no gain in 3 looks" and outcome.standing.step < QUICK["steps"]


class OneWeight(torch.nn.Module):
    """A student that answers every question with its one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.weights = {"weight": self.weight}

    def forward(self, feeds, *, also=()):
        return {"y": self.weight * feeds["sign"]}


class TurnedLesson:
    """The answer is 1, but from one step on the batches push away from it; judging does not."""

    also = ()
    held_out = 1

    def __init__(self, *, turns_at: int, broken: bool = False) -> None:
        self._turns_at, self._broken = turns_at, broken

    def parts(self, step):
        sign = 1.0 if step < self._turns_at else float("nan") if self._broken else -1.0
        yield Part(1.0, {"sign": torch.tensor([sign])}, {"y": torch.ones(1)})

    def judging(self):
        yield Part(1.0, {"sign": torch.ones(1)}, {"y": torch.ones(1)})

    def loss(self, outputs, answers, *, softened):
        return (outputs["y"] - answers["y"]).square().mean()


@pytest.mark.parametrize("broken", [False, True])
def test_loss_that_diverges_after_a_gain_ends_the_training_with_the_best_so_far(broken) -> None:
    course = Course(steps=200, learning_rate=0.05, schedule="constant", patience=100)
    outcome = loop.train(OneWeight(), TurnedLesson(turns_at=15, broken=broken), course, loop.Watch())
    assert outcome.standing.ended.startswith("the loss is nan" if broken else "the held-out loss went from")
    assert 0 < outcome.standing.best_step <= 20
    assert 0.2 < float(outcome.weights["weight"]) <= 1.0


def test_loss_that_diverges_before_any_gain_refuses_the_student() -> None:
    course = Course(steps=200, learning_rate=0.05, schedule="constant", patience=100)
    with pytest.raises(PassFailed, match=r"the held-out loss went from 1 to .* with a learning rate of 0\.05"):
        loop.train(OneWeight(), TurnedLesson(turns_at=0), course, loop.Watch())


def test_progress_is_told_with_growing_shares() -> None:
    told: list[tuple[float, str]] = []
    trained(loop.Watch(progress=lambda share, words: told.append((share, words))))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert told[0][1].startswith("step 2/40, loss ")


def test_batch_in_parts_gives_the_gradients_of_the_whole() -> None:
    student, evidence = pair()
    course = Course(**QUICK)
    gradients = []
    for at_once in (1, 4):
        replay = Replay(student)
        with Lesson(student, replay, engage(student, evidence), course, folder=None) as lesson:
            assert lesson.at_once == 4
            lesson.at_once = at_once
            for part in lesson.parts(0):
                (lesson.loss(replay(part.feeds), part.answers, softened=True) * part.share).backward()
        gradients.append({name: weight.grad.numpy() for name, weight in replay.weights.items()})
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "count"),
    [(builders.conv_net, 1), (builders.mlp, 1), (builders.lstm, 1), (builders.depthwise_residual, 1)],
)
def test_dropout_stands_before_each_outputs_last_layer(build, count) -> None:
    model = build()
    names = mode.inputs_of_last_layers(model)
    made = {str(value.name) for node in model.graph for value in node.outputs}
    assert len(names) == count and set(names) <= made


def test_dropout_is_off_while_the_student_is_judged() -> None:
    student, evidence = pair()
    replay = Replay(student)
    entered = mode.enter(student, replay, Course(dropout=0.5), evidence)
    feeds = {name: torch.from_numpy(array) for name, array in builders.feeds(student).items()}
    calm = [replay(feeds)["logits"] for _ in range(2)]
    entered.set(True)
    wild = [replay(feeds)["logits"] for _ in range(2)]
    assert torch.equal(*calm) and not torch.equal(*wild)


# ---------------------------------------------------------------- checkpoints
def test_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    state = checkpoint.State(
        facts={"step": 7, "best": 0.5},
        arrays={"weights": {"a/b.c": np.arange(6.0).reshape(2, 3), "": np.zeros((), np.float32)}, "best": {}},
    )
    checkpoint.save(tmp_path / "deep" / "state.npz", state)
    found = checkpoint.load(tmp_path / "deep" / "state.npz")
    assert found is not None and found.facts == state.facts
    for name, array in state.arrays["weights"].items():
        np.testing.assert_array_equal(found.arrays["weights"][name], array)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["state.npz"]


@pytest.mark.parametrize("damage", [b"", b"no zip at all", None])
def test_damaged_checkpoint_is_no_checkpoint(damage, tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    checkpoint.save(file, checkpoint.State(facts={"step": 1}, arrays={"weights": {"w": np.ones(100)}}))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage is None else damage)
    assert checkpoint.load(file) is None


def test_checkpoint_with_a_pickle_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    np.savez(file, facts=np.array([{"step": 1}], dtype=object))
    assert checkpoint.load(file) is None


def test_torch_is_as_it_was_after_a_training() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with loop.steady(1):
        torch.manual_seed(5)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_missing_torch_is_told_with_the_command_that_brings_it(monkeypatch) -> None:
    monkeypatch.setattr(distill, "find_spec", lambda _name: None)
    reason = distill.Distill().refuse(builders.signature(builders.mlp()), builders.TARGET)
    assert reason is not None and "pip install 'edgeopt[train]'" in reason


def test_rate_of_a_tensor_goes_with_the_root_of_its_size() -> None:
    """A layer a million times smaller than the others is moved a thousandth as far, so that it is not lost at once."""
    sizes = {"small": 1e-6, "middle": 1.0, "large": 4.0, "zero": 0.0}
    weights = {name: torch.nn.Parameter(torch.full((2, 2) if size else (2,), size)) for name, size in sizes.items()}
    descent = Descent(weights, Course(learning_rate=0.01))
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    descent.step(0.01)
    moved = {name: float((sizes[name] - weight.detach()).mean()) for name, weight in weights.items()}
    assert moved == pytest.approx({"small": 1e-5, "middle": 0.01, "large": 0.02, "zero": 0.01}, rel=0.01)
