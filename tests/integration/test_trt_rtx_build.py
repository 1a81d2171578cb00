"""The process that builds an engine, with the real builder of TensorRT for RTX: profiles, progress, limits, cancelled and orphaned builds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import builders
import onnx_ir as ir
import pytest
from special import wide

from edgeopt import wire
from edgeopt.errors import CompileFailed
from edgeopt.runtimes.trt import build
from edgeopt.runtimes.trt.flavours import RTX, module_of
from edgeopt.runtimes.trt.order import Order, Progress, Range

pytestmark = pytest.mark.trt_rtx


def order_for(model: ir.Model, folder: Path, **changes: Any) -> Order:
    file = folder / "model.onnx"
    ir.save(model, file)
    shape = Range(input="image", least=(1, 16, 16, 16), typical=(1, 16, 16, 16), most=(4, 16, 16, 16))
    module = module_of(RTX)
    assert module is not None
    order = Order(
        module=module, model=str(file), engine=str(folder / "model.engine"), gpus=("SM86",), profiles=((shape,),)
    )
    return dataclasses.replace(order, **changes)


def test_two_profiles_fit_into_one_engine(tmp_path: Path) -> None:
    order = order_for(wide(), tmp_path)
    larger = Range(input="image", least=(8, 16, 16, 16), typical=(8, 16, 16, 16), most=(16, 16, 16, 16))
    assert build.build(dataclasses.replace(order, profiles=(*order.profiles, (larger,)))).stage == "built"


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((4, 16, 16, 16), (1, 16, 16, 16), (4, 16, 16, 16)), "profile"),
        (((1, 16), (1, 16), (1, 16)), "profile"),
        (((1, 15, 16, 16), (1, 15, 16, 16), (1, 15, 16, 16)), "build"),
    ],
    ids=["least above typical", "wrong rank", "wrong static side"],
)
def test_profile_that_does_not_fit_is_one_sentence(tmp_path: Path, shapes: Any, said: str) -> None:
    least, typical, most = shapes
    wrong = Range(input="image", least=least, typical=typical, most=most)
    with pytest.raises(CompileFailed, match=said):
        build.build(order_for(wide(), tmp_path, profiles=((wrong,),)))


def test_too_little_workspace_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="workspace limit") as failed:
        build.build(order_for(wide(), tmp_path, workspace_bytes=1))
    assert failed.value.hint == "Allow more workspace."


def test_progress_of_each_phase_only_grows(tmp_path: Path) -> None:
    seen: list[Progress] = []
    build.build(order_for(wide(), tmp_path), on_progress=seen.append)
    assert seen
    last: dict[str, int] = {}
    for each in seen:
        assert last.get(each.phase, 0) <= each.done
        last[each.phase] = each.done


def test_cancelled_build_leaves_no_engine(tmp_path: Path) -> None:
    order = order_for(wide(), tmp_path)
    with pytest.raises(CompileFailed, match="cancelled"):
        build.build(order, should_stop=lambda: True)
    assert not Path(order.engine).exists()


def test_build_over_its_time_limit_is_ended(tmp_path: Path) -> None:
    order = order_for(wide(), tmp_path)
    with pytest.raises(CompileFailed, match=r"longer than 0\.01 s"):
        build.build(order, limit_s=0.01)
    assert not Path(order.engine).exists()


# ---------------------------------------------------------------- cancelled in the middle
def deep(layers: int = 40) -> ir.Model:
    """Takes seconds to build."""
    net = builders.Net(seed=9)
    value = "image"
    for number in range(layers):
        kernel = net.weight(256, 256 if number else 16, 3, 3, scale=0.02)
        value = net.op("Relu", net.op("Conv", value, kernel, net.weight(256), pads=[1, 1, 1, 1]))
    net.op("GlobalAveragePool", value, output="pooled")
    return net.build({"image": ["N", 16, 16, 16]}, {"pooled": ["N", 256, 1, 1]})


def test_build_cancelled_in_the_middle_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    order = order_for(deep(), tmp_path)
    told: list[Progress] = []
    stopped: list[float] = []

    def should_stop() -> bool:
        # some way into the build, not before it
        if told and not stopped:
            stopped.append(time.monotonic())
        return bool(told)

    with pytest.raises(CompileFailed, match="cancelled"):
        build.build(order, on_progress=told.append, should_stop=should_stop)
    assert time.monotonic() - stopped[0] < 10  # 0.1 to 2 s on an idle machine
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_build_whose_owner_is_killed_ends_by_itself_and_leaves_nothing(tmp_path: Path) -> None:
    order = order_for(deep(), tmp_path)
    owner = (
        "import sys; from edgeopt import wire; from edgeopt.runtimes.trt import build; from edgeopt.runtimes.trt.order import Order\n"
        "build.build(wire.loads(Order, sys.argv[1]), on_progress=lambda told: print(told, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", owner, wire.dumps(order)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert children
    deadline_s = time.monotonic() + 20
    while any(is_running(int(child)) for child in children):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def is_running(process: int) -> bool:
    """Whether it is there and no zombie that nobody has collected."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
