"""A staged job folder through the first stage, and `inspect` as the program that the command line starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.calibrate import samples
from edgeopt.errors import BadData, BadJobFile, UnsupportedModel
from edgeopt.layout import JobFolder
from edgeopt.orders import JobOrder, Source, StagedFiles
from edgeopt.passes import QuantizeDynamic
from edgeopt.policy import Policy, WorkerLimits
from edgeopt.stages import ingest

MODELS = (
    "all_minilm_l6_v2",
    "ddddocr_det",
    "digits_mlp",
    "efficientnet_lite0",
    "magika_v3_3",
    "ppocr_v4_det",
    "silero_vad",
)


def order(**files: str) -> JobOrder:
    return JobOrder(
        job_id="1",
        name="net",
        source=Source(file="net.onnx", format="onnx", sha256="0" * 64, bytes=1),
        files=StagedFiles(model="model.onnx", **files),
        policy=Policy(),
        limits=WorkerLimits(),
    )


def model(shape: Any = ("n", 4)) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    job = JobFolder(tmp_path / "job")
    job.create()
    onnx.save(model(), job.input / "model.onnx")
    return job


def test_teacher_is_loaded_and_must_answer_the_same_questions(folder: JobFolder) -> None:
    onnx.save(model(), folder.input / "teacher.onnx")
    assert ingest.load(folder, order()).teacher is None
    assert ingest.load(folder, order(teacher="teacher.onnx")).teacher is not None
    other = model()
    other.graph.input[0].name = other.graph.node[0].input[0] = "rows"
    onnx.save(other, folder.input / "teacher.onnx")
    with pytest.raises(BadJobFile, match=r"the teacher has the inputs \['rows'\]"):
        ingest.load(folder, order(teacher="teacher.onnx"))


def test_whole_drop_is_ingested(folder: JobFolder) -> None:
    (folder.input / "job.yaml").write_text("goal: {max_drop: 0.05}\ninputs: {x: {range: [0, 1]}}\n")
    np.savez(folder.input / "calibration.npz", x=np.ones((5, 4), np.float32))
    np.savez(folder.input / "eval.npz", x=np.ones((3, 4), np.float32), labels=np.array([0, 1, 1]))
    files = {"job_file": "job.yaml", "calibration": "calibration.npz", "eval": "eval.npz"}
    given = ingest.load(folder, order(**files))
    assert given.policy.goal.max_drop == 0.05
    assert given.path == folder.input / "model.onnx"
    assert given.signature.outputs[0].shape == ("n", 2)  # inferred: the file does not say
    assert given.calibration is not None
    assert given.eval is not None
    assert (len(given.calibration), len(given.eval), given.calibration.labels) == (5, 3, None)
    np.testing.assert_array_equal(given.eval.labels, [0, 1, 1])
    assert given.notes == ()


def test_drop_of_a_model_alone_has_no_samples(folder: JobFolder) -> None:
    given = ingest.load(folder, order())
    assert (given.calibration, given.eval, given.policy) == (None, None, Policy())


def refused_job_file(folder: JobFolder, text: str) -> str:
    """What is said of a job file that does not do."""
    (folder.input / "job.yaml").write_text(text)
    with pytest.raises(BadJobFile) as caught:
        ingest.load(folder, order(job_file="job.yaml"))
    return caught.value.message


def test_job_file_with_mistakes_lists_all_of_them(folder: JobFolder) -> None:
    message = refused_job_file(folder, "goal: {max_dorp: 0.05}\nsearch: {trials: many}\n")
    assert "line 1: goal.max_dorp is unknown" in message
    assert "search.trials" in message


def test_misspelled_setting_of_a_technique_rejects_the_job_before_any_work(folder: JobFolder) -> None:
    message = refused_job_file(folder, "techniques:\n  prune: {critereon: l1}\n  distill: {steps: 0}\n")
    assert "line 2: techniques.prune.critereon is unknown; did you mean criterion?" in message
    assert "line 3: techniques.distill.steps is 0, not a whole number from 1" in message


def test_job_file_that_contradicts_the_model_is_refused(folder: JobFolder) -> None:
    message = refused_job_file(folder, "inputs: {x: {shape: [1, 5]}, z: {range: [0, 1]}}\n")
    assert "inputs.x.shape is [1, 5], but the model says ['n', 4]" in message
    assert "inputs.z is not an input" in message


def test_stated_lengths_must_hold_the_models_own(folder: JobFolder) -> None:
    message = refused_job_file(folder, "inputs: {x: {shape: [1..8, 5..9]}}\n")
    assert "inputs.x.shape is ['1..8', '5..9'], but the model says ['n', 4]" in message


def test_two_inputs_cannot_state_different_lengths_for_one_dimension(folder: JobFolder) -> None:
    net = builders.Net(seed=1)
    net.op("Add", "x", "z", output="y")
    ir.save(net.build({"x": ["n", 4], "z": ["n", 4]}, {"y": ["n", 4]}), folder.input / "model.onnx")
    message = refused_job_file(folder, "inputs: {x: {shape: [1..8, 4]}, z: {shape: [1..9, 4]}}\n")
    assert "inputs.z.shape has 1..9 for n, and another input 1..8" in message


def test_made_up_inputs_have_the_typical_length_that_is_stated(folder: JobFolder) -> None:
    (folder.input / "job.yaml").write_text("inputs: {x: {shape: [1..5..8, 4]}}\n")
    given = ingest.load(folder, order(job_file="job.yaml"))
    assert samples.synthetic(given.signature, given.policy.inputs, seed=0, count=1).feeds(0)["x"].shape == (5, 4)


def test_input_without_any_shape_takes_the_job_file_s(folder: JobFolder) -> None:
    onnx.save(model(shape=None), folder.input / "model.onnx")
    with pytest.raises(UnsupportedModel) as caught:
        ingest.load(folder, order())
    assert "job file" in caught.value.hint
    (folder.input / "job.yaml").write_text('inputs: {x: {shape: ["n", 4]}}\n')
    assert ingest.load(folder, order(job_file="job.yaml")).signature.inputs[0].shape == ("n", 4)


def test_data_that_does_not_fit_names_its_file(folder: JobFolder) -> None:
    np.savez(folder.input / "eval.npz", x=np.ones((3, 5), np.float32))
    with pytest.raises(BadData, match=r"^eval\.npz does not fit the model"):
        ingest.load(folder, order(eval="eval.npz"))


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from edgeopt.calibrate.samples import open_samples
from edgeopt.records import Signature, TensorSpec

spec = TensorSpec(name="x", dtype="float32", shape=("n", 3, 256, 256))
signature = Signature(format="onnx", opset=17, inputs=(spec,), outputs=(), operators=())
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
before = peak()
samples = open_samples(Path(sys.argv[1]), signature, unpack_to=Path(sys.argv[1]))
assert len([feeds["x"].sum() for feeds in samples]) == 512
print(peak() - before)
"""
    data = tmp_path / "calibration"
    data.mkdir()
    np.lib.format.open_memmap(data / "x.npy", "w+", np.float32, (512, 3, 256, 256)).flush()  # 384 MiB, sparse on disk
    done = subprocess.run(
        [sys.executable, "-c", program, str(data)], capture_output=True, text=True, check=True, timeout=100
    )
    assert int(done.stdout) < 40


# ---------------------------------------------------------------- inspect
def inspected(path: Path, *work: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "edgeopt.worker.inspect", str(path), *work]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_inspect_tells_what_a_model_is(folder: JobFolder) -> None:
    code, facts = inspected(folder.input / "model.onnx")
    assert code == 0
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]
    assert facts["operators"] == {"MatMul": 1}
    assert facts["precision_bytes"] == {}  # 32 bytes are no layer worth telling
    assert (facts["opset"], facts["format"], facts["manifest"], facts["external_data"]) == (17, "onnx", None, [])


def test_inspect_tells_an_artifact_s_manifest_and_precisions(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 8), np.int8), "w")
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
            helper.make_node("MatMul", ["x", "f"], ["y"], name="fc"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [weight, scale],
    )
    quantized = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        quantized, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=100
    )
    (tmp_path / "manifest.json").write_text('{"schema": 1, "name": "net"}')
    code, facts = inspected(tmp_path)
    assert code == 0
    assert facts["manifest"] == {"schema": 1, "name": "net"}
    assert facts["external_data"] == [{"file": "model.onnx.data", "tensors": 1, "bytes": 512}]
    layer = {"name": "fc", "operator": "MatMul", "weights": "int8", "weight_shape": [64, 8]}
    assert facts["layers"] == [{**layer, "weight_bytes": 512, "activations": "float32"}]
    assert facts["quantized"]
    assert facts["precision_bytes"] == {"int8": 512}


def test_inspect_says_of_each_layer_whether_its_channels_may_go(tmp_path: Path) -> None:
    net, work = builders.Net(), tmp_path / "work"
    work.mkdir()
    wide = net.op("Conv", "image", net.weight(6, 3, 1, 1))
    other = net.op("Conv", net.op("Relu", wide), net.weight(5, 6, 1, 1))
    net.op("Conv", net.op("LRN", other, size=3), net.weight(4, 5, 1, 1), output="features")
    model = net.build({"image": ["N", 3, "H", "W"]}, {"features": ["N", 4, "H", "W"]})
    (tmp_path / "model.onnx").write_bytes(builders.to_bytes(model))
    code, facts = inspected(tmp_path / "model.onnx", str(work))
    assert code == 0
    (family,) = facts["channels"]["families"]
    assert (family["kind"], family["units"], family["made_by"][0]["operator"]) == ("channels", 6, "Conv")
    reasons = {frozen["reason"] for frozen in facts["channels"]["frozen"]}
    assert any(reason.startswith("LRN") and reason.endswith("is not understood here") for reason in reasons)
    assert any("'features', which the model gives out" in reason for reason in reasons)


def test_inspect_has_no_channels_to_show_of_a_quantized_model(tmp_path: Path) -> None:
    model = builders.mlp(width=64)
    model = QuantizeDynamic().apply(model, {}, builders.FakeEvidence(model))
    (tmp_path / "model.onnx").write_bytes(builders.to_bytes(model))
    _, facts = inspected(tmp_path / "model.onnx", str(tmp_path))
    assert facts["channels"] == {"families": [], "frozen": [], "refused": "the model is quantized already"}


def test_inspect_refuses_what_is_no_model_in_one_document(tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("hello")
    assert inspected(tmp_path / "notes.onnx") == (
        1,
        {
            "error": {
                "code": "not-a-model",
                "message": "the file is not an ONNX model",
                "hint": "Drop an ONNX model; export one where it is not.",
            }
        },
    )
    code, document = inspected(tmp_path / "nothing")
    assert (code, document["error"]["code"]) == (1, "unreadable")


# ---------------------------------------------------------------- real models
@pytest.mark.corpus
@pytest.mark.parametrize("name", MODELS)
def test_real_model_is_ingested_with_its_data(name: str, tmp_path: Path) -> None:
    source = Path(os.environ["EDGEOPT_CORPUS"]) / name
    if not source.is_dir():
        pytest.skip(f"{name} is not in this corpus")
    folder = JobFolder(tmp_path)
    folder.create()
    for file, staged in (("model.onnx", "model.onnx"), ("calib.npz", "calibration.npz"), ("eval.npz", "eval.npz")):
        shutil.copyfile(source / file, folder.input / staged)
    given = ingest.load(folder, order(calibration="calibration.npz", eval="eval.npz"))
    facts = json.loads((source / "meta.json").read_text())
    assert given.signature.opset == facts["opset"]["ai.onnx"]
    assert [spec.name for spec in given.signature.inputs] == [item[0] for item in facts["inputs"]]
    assert [spec.name for spec in given.signature.outputs] == [item[0] for item in facts["outputs"]]
    assert given.calibration is not None
    assert given.eval is not None
    assert len(given.calibration) == len(np.load(source / "calib.npz")[given.signature.inputs[0].name])
    feeds = given.eval.feeds(len(given.eval) - 1)
    assert {spec.name: (spec.dtype, len(spec.shape)) for spec in given.signature.inputs} == {
        name: (value.dtype.name, value.ndim) for name, value in feeds.items()
    }
    assert [pair.input for pair in given.signature.states] == (
        [item[0] for item in facts["inputs"] if item[0] == "state"]
    )
