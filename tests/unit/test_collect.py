"""One pass over the data: what is seen, what is kept, what is remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

from edgeopt.calibrate import instrument
from edgeopt.calibrate.collect import collect, fingerprint
from edgeopt.errors import PassFailed
from edgeopt.graph import edit


def two_maps() -> ir.Model:
    net = Net(seed=2)
    net.op("Conv", "image", net.weight(8, 3, 3, 3), net.weight(8), output="signed", pads=[1, 1, 1, 1])
    net.op("Relu", "signed", output="positive")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", "positive"), output="rows")
    net.op("Gemm", pooled, net.weight(8, 4), output="out")
    return net.build({"image": [2, 3, 20, 20]}, {"out": [2, 4]})


NAMES = ["signed", "positive", "rows"]


def test_extremes_and_channel_means_are_those_of_every_value() -> None:
    model = two_maps()
    evidence = FakeEvidence(model, samples=5)
    seen = collect(model, NAMES, evidence, channels={"signed": 1, "positive": 1, "rows": -1})
    arrays = list(evidence.observe(model, NAMES))
    for name in NAMES:
        every = np.stack([sample[name] for sample in arrays])
        assert seen[name].stats.high == pytest.approx(float(every.max()))
        assert seen[name].stats.low == pytest.approx(float(every.min()) if name != "positive" else 0.0)
        assert seen[name].stats.high_sum == pytest.approx(float(every.reshape(5, -1).max(axis=1).sum()))
        axes = (0, 1, 3, 4) if every.ndim == 5 else (0, 1)
        assert np.allclose(seen[name].mean, every.mean(axis=axes), atol=1e-5)


def test_the_sampled_values_have_the_tensors_own_distribution() -> None:
    model = two_maps()
    evidence = FakeEvidence(model, samples=8)
    histogram = collect(model, ["signed"], evidence, channels={})["signed"].stats.histogram
    every = np.concatenate([sample["signed"].ravel() for sample in evidence.observe(model, ["signed"])])
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    truth = np.searchsorted(np.sort(every), histogram.centres() + histogram.width / 2) / every.size
    assert np.abs(shares - truth).max() < 0.02


@pytest.mark.parametrize("samples", [3, 40])
def test_each_sample_adds_a_bounded_number_of_values_and_the_state_stays_the_same_size(samples: int) -> None:
    model = two_maps()
    seen = collect(model, NAMES, FakeEvidence(model, samples=samples), channels={})
    sizes = {name: array.size for name, array in next(iter(FakeEvidence(model).observe(model, NAMES))).items()}
    for name, observation in seen.items():
        assert observation.stats.samples == samples
        values = observation.stats.histogram.counts.sum() / samples
        assert min(sizes[name], instrument.VALUES_PER_SAMPLE) <= values <= 2 * instrument.VALUES_PER_SAMPLE
        assert observation.stats.histogram.counts.nbytes == 65536


def test_shapes_may_differ_from_sample_to_sample() -> None:
    model = builders.depthwise_residual()
    evidence = FakeEvidence(model, samples=0)
    evidence._samples = [builders.feeds(model, seed=size, symbols=size) for size in (4, 9, 17)]
    evidence.sample_count = 3
    name = str(model.graph[0].outputs[0].name)
    seen = collect(model, [name], evidence, channels={name: 1})
    largest = max(float(sample[name].max()) for sample in evidence.observe(model, [name]))
    assert seen[name].stats.high == pytest.approx(largest)


def test_the_second_call_does_not_run_the_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_maps()
    evidence = FakeEvidence(model)
    first = collect(model, NAMES, evidence, channels={})

    def fails(*_: Any) -> Any:
        raise AssertionError("ran again")

    monkeypatch.setattr(evidence, "observe", fails)
    assert collect(edit.copy(model), NAMES, evidence, channels={}) is first
    with pytest.raises(AssertionError):
        collect(two_maps(), NAMES[:1], evidence, channels={})


def test_a_fingerprint_depends_on_weights_nodes_and_constants() -> None:
    model = two_maps()
    assert fingerprint(model) == fingerprint(edit.copy(model))
    changed = edit.copy(model)
    name, value = next(iter(changed.graph.initializers.items()))
    value.const_value = ir.tensor(np.asarray(value.const_value) + 1, name=name)
    assert fingerprint(changed) != fingerprint(model)
    constants = builders.conv_net(constants=True)
    assert fingerprint(constants) != fingerprint(builders.conv_net(constants=True, seed=1))


def test_a_nan_that_the_extremes_do_not_show_is_found() -> None:
    net = Net()
    net.op("Log", "rows", output="logs")
    net.op("MatMul", "logs", net.weight(4, 2), output="out")
    model = net.build({"rows": [3, 4]}, {"out": [3, 2]})
    with pytest.raises(PassFailed, match="'logs' is not finite"):
        collect(model, ["logs"], FakeEvidence(model), channels={"logs": -1})


def test_a_fingerprint_takes_strings_and_types_that_numpy_lacks() -> None:
    net = Net()
    net.op("Tanh", "rows", output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 4]})
    plain = fingerprint(model)
    labels = ir.StringTensor([b"cat", b"dog"], shape=ir.Shape([2]), name="labels")
    halves = ir.Tensor(np.array([1, 2], np.uint16), dtype=ir.DataType.BFLOAT16, name="halves")
    for tensor in (labels, halves):
        model.graph.register_initializer(ir.Value(name=str(tensor.name), const_value=tensor))
    assert fingerprint(model) != plain


def test_a_tensor_is_read_before_the_next_but_one_layer_overwrites_the_cache(tmp_path: Path) -> None:
    import onnxruntime

    net, value = Net(seed=3), "image"
    names: list[str] = []
    for _ in range(6):
        value = net.op("Conv", value, net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
        value = net.op("Relu", value, output=f"map_{len(names)}")
        names.append(value)
    model = net.build({"image": [1, 16, 24, 24]}, {value: [1, 16, 24, 24]})
    observed, probes = instrument.with_statistics(model, dict.fromkeys(names, (1, 16, 24, 24)), dict.fromkeys(names, 1))
    proto = onnx.load_from_string(builders.to_bytes(observed))
    wanted = [name for probe in probes.values() for name in probe.names()]
    del proto.graph.output[:]  # as the evidence does: only what is observed leaves the runtime
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(wanted, {"image": np.ones((1, 16, 24, 24), np.float32)})
    events = [event for event in json.loads(Path(session.end_profiling()).read_text()) if event.get("cat") == "Node"]
    executed = [
        event["name"].removesuffix("_kernel_time") for event in events if event["name"].endswith("_kernel_time")
    ]
    layers = [place for place, event in enumerate(events) if event["args"].get("op_name") == "Conv"]
    assert len(executed) == len(events)
    for number, name in enumerate(names[:-2]):
        last_probe = max(executed.index(probe) for probe in probes[name].names())
        assert layers[number] < last_probe < layers[number + 2]


def test_the_step_of_thinning_meets_every_side_before_it_repeats() -> None:
    for shape in (
        (1, 1152, 4, 4),
        (1, 1152, 16, 16),
        (1, 128, 384),
        (1, 320, 7, 7),
        (1, 48, 77, 13),
        (1, 12, 128, 128),
    ):
        size, step = int(np.prod(shape)), instrument._step(shape)
        assert instrument.VALUES_PER_SAMPLE / 2 <= size // step <= 2 * instrument.VALUES_PER_SAMPLE
        last = np.arange(0, size, step) % shape[-1]
        assert set(last) == set(range(shape[-1]))
    assert instrument._step((2, 8)) == 1
