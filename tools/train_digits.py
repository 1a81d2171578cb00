"""Train the digits CNN that `edgeopt demo` drops, and write the files that the package ships.

The worked example: scikit-learn's digits (1,797 scans of handwritten digits, 8x8 pixels, labels by people), split once
into train, calibration and eval (60/10/30 per cent, stratified). The hyper-parameters come from a random search that
sees the training part only; the calibration and eval parts are touched by nothing before the last line is printed.
Batch-norm stays unfolded in the export, as most exports leave it, so that edgeopt has something to do.

    pip install "edgeopt[demo-training]"
    python tools/train_digits.py --out edgeopt/demo
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

CLASSES = 10
BRIGHTEST = 16.0
SEED = 20240229


@dataclass(frozen=True, slots=True)
class Hyper:
    """What the random search draws."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    shift: float
    rotation_deg: float
    label_smoothing: float


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures (n, 1, 8, 8) in [0, 1] and their class indices (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


def split(seed: int) -> tuple[Part, Part, Part]:
    """Train, calibration and eval: disjoint, stratified, the same at every call."""
    digits = load_digits()
    images = (digits.images[:, None] / BRIGHTEST).astype(np.float32)
    labels = digits.target.astype(np.int64)
    rest, eval_rows = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=seed)
    train_rows, calibration_rows = train_test_split(rest, test_size=1 / 7, stratify=labels[rest], random_state=seed)
    parts = [
        Part(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]))
        for rows in (train_rows, calibration_rows, eval_rows)
    ]
    return parts[0], parts[1], parts[2]


def build_network(width: int) -> nn.Sequential:
    """Four convolutions at full resolution, a pooling and one linear layer."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, width),
        *block(width, width),
        *block(width, width),
        *block(width, width),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(width * 16, CLASSES),
    )


def augment(images: torch.Tensor, hyper: Hyper, generator: torch.Generator) -> torch.Tensor:
    """Each picture turned, scaled by up to 10 per cent and shifted a little, differently at every call."""
    count = len(images)

    def draw(reach: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, scale = torch.deg2rad(draw(hyper.rotation_deg)), 1 + draw(0.1)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # affine_grid counts in half widths: one pixel of eight is 2 / 8
    shift_x, shift_y = draw(hyper.shift * 2 / 8), draw(hyper.shift * 2 / 8)
    theta = torch.stack([torch.stack([cosine, -sine, shift_x], 1), torch.stack([sine, cosine, shift_y], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(part: Part, hyper: Hyper, *, width: int, epochs: int, seed: int) -> nn.Sequential:
    """A trained network in eval mode; the same seed gives the same weights on one machine."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build_network(width)
    steps = epochs * -(-len(part.labels) // hyper.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), hyper.learning_rate, weight_decay=hyper.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, hyper.learning_rate, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(part.labels), generator=generator)
        for rows in order.split(hyper.batch_size):
            outputs = network(augment(part.images[rows], hyper, generator))
            loss = functional.cross_entropy(outputs, part.labels[rows], label_smoothing=hyper.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, part: Part) -> float:
    """The share of pictures whose most probable class is the label."""
    return (network(part.images).argmax(1) == part.labels).float().mean().item()


def draw_hyper(random: np.random.Generator) -> Hyper:
    """One draw of the random search: scales log-uniform, the rest uniform."""
    return Hyper(
        learning_rate=float(10 ** random.uniform(-3.0, -1.7)),
        weight_decay=float(10 ** random.uniform(-5.0, -1.5)),
        batch_size=int(random.choice([32, 64, 128])),
        shift=float(random.uniform(0.0, 1.0)),
        rotation_deg=float(random.uniform(0.0, 15.0)),
        label_smoothing=float(random.choice([0.0, 0.05, 0.1])),
    )


def search(part: Part, *, trials: int, epochs: int, width: int, seed: int) -> Hyper:
    """The best of ``trials`` random draws by accuracy on a fifth of the training part held back."""
    random = np.random.default_rng(seed)
    fit_rows, held_rows = train_test_split(
        np.arange(len(part.labels)), test_size=0.2, stratify=part.labels.numpy(), random_state=seed
    )
    fit, held = (Part(part.images[rows], part.labels[rows]) for rows in (fit_rows, held_rows))
    results: list[tuple[float, Hyper]] = []
    for number in range(1, trials + 1):
        hyper = draw_hyper(random)
        score = accuracy(train(fit, hyper, width=width, epochs=epochs, seed=seed), held)
        results.append((score, hyper))
        print(f"search {number}/{trials}: held-back accuracy {score:.4f} with {hyper}", flush=True)
    return max(results, key=lambda result: result[0])[1]


def export(network: nn.Module, path: Path) -> None:
    """ONNX, opset 18, batch symbolic, batch-norm as it was trained; the class probabilities are the output."""
    served = nn.Sequential(network, nn.Softmax(dim=1)).eval()
    # a batch of 2, since the exporter takes 1 for a constant
    program = torch.onnx.export(
        served,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,  # the optimizer would fold the batch-norm
        opset_version=18,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    model = program.model_proto
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes (stack traces with this machine's paths): they are half of the file."""
    del model.metadata_props[:]
    for holder in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del holder.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.value_info[:]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("edgeopt/demo"), help="folder of the shipped files")
    parser.add_argument("--trials", type=int, default=12, help="draws of the random search")
    parser.add_argument("--search-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=120, help="epochs of the final training")
    parser.add_argument("--width", type=int, default=48, help="channels of a convolution")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(2)
    train_part, calibration_part, eval_part = split(arguments.seed)
    hyper = search(
        train_part,
        trials=arguments.trials,
        epochs=arguments.search_epochs,
        width=arguments.width,
        seed=arguments.seed,
    )
    print(f"chosen: {hyper}")
    network = train(train_part, hyper, width=arguments.width, epochs=arguments.epochs, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    export(network, arguments.out / "digits.onnx")
    np.savez_compressed(arguments.out / "digits.calibration.npz", image=calibration_part.images.numpy())
    np.savez_compressed(
        arguments.out / "digits.eval.npz", image=eval_part.images.numpy(), labels=eval_part.labels.numpy()
    )
    parameters = sum(value.numel() for value in network.parameters())
    print(f"{parameters} parameters, {(arguments.out / 'digits.onnx').stat().st_size} bytes of ONNX")
    print(f"train {len(train_part.labels)}, calibration {len(calibration_part.labels)}, eval {len(eval_part.labels)}")
    print(f"eval accuracy {accuracy(network, eval_part):.4f}")


if __name__ == "__main__":
    main()
