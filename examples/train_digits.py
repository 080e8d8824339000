"""Train a classifier of digits under quantisation, with NumPy alone.

    python examples/train_digits.py

The classifier has two layers, from 64 pixels to 64 units to 10 digits.  It is trained in floating point, and quantised
afterwards.  Then it is trained under quantisation for as many epochs again.  Weights, per channel, and activations have
the same number of bits.  The script prints a table over the seeds, and saves a chart of the first seed.
"""

from __future__ import annotations

import argparse

import numpy as np
from report import Curves, Results, plot, table
from sklearn.datasets import load_digits

import qatcore

UNITS, BATCH = 64, 32
WIDTHS = {"int8": qatcore.QuantBits.INT8, "int4": qatcore.QuantBits.INT4, "int2": qatcore.QuantBits.INT2}


class FloatLayer:
    """A layer like QatLayer, without quantisation."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray) -> None:
        self.weights, self.bias = weights, bias

    def forward_train(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.weights.T + self.bias

    forward_infer = forward_train

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        self.grad_weights, self.grad_bias = gradient.T @ self.x, gradient.sum(axis=0)
        return gradient @ self.weights


class Adam:
    """Adam for the parameters of layers (Kingma and Ba 2015)."""

    NAMES = ("weights", "bias", "weight_scale", "activation_scale")

    def __init__(self, layers: list, rate: float) -> None:
        self.layers, self.rate, self.steps = layers, rate, 0
        self.moments = {}

    def step(self) -> None:
        self.steps += 1
        for index, layer in enumerate(self.layers):
            for name in self.NAMES:
                gradient = getattr(layer, f"grad_{name}", None)
                if gradient is None:
                    continue
                first, second = self.moments.get((index, name), (0.0, 0.0))
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * np.square(gradient)
                self.moments[index, name] = first, second
                step = first / (1 - 0.9**self.steps) / (np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8)
                value = getattr(layer, name)
                if name.endswith("scale"):  # relative steps keep a scale positive
                    setattr(layer, name, value * np.exp(-self.rate * step))
                else:
                    setattr(layer, name, value - self.rate * step)


def forward(layers: list, x: np.ndarray, infer: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden units before their ReLU, and the logits."""
    first, second = [layer.forward_infer if infer else layer.forward_train for layer in layers]
    hidden = first(x)
    return hidden, second(np.maximum(hidden, 0.0))


def accuracy(layers: list, x: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of right answers, computed on codes."""
    return 100.0 * float(np.mean(forward(layers, x, infer=True)[1].argmax(axis=1) == labels))


def train(layers: list, data: tuple, epochs: int, rate: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Train, and return the loss and the test accuracy of each epoch."""
    x, labels, test_x, test_labels = data
    curve = []
    optimiser = Adam(layers, rate)
    for epoch in range(epochs):
        optimiser.rate = rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        losses = []
        for batch in np.array_split(rng.permutation(len(x)), len(x) // BATCH):
            hidden, logits = forward(layers, x[batch])
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            chosen = p[np.arange(len(batch)), labels[batch]]
            losses.append(-np.log(chosen).mean())
            p[np.arange(len(batch)), labels[batch]] -= 1.0
            gradient = layers[1].backward(p / len(batch))
            layers[0].backward(gradient * (hidden > 0.0))
            optimiser.step()
        curve.append((float(np.mean(losses)), accuracy(layers, test_x, test_labels)))
    return curve


def quantised(floats: list[FloatLayer], bits: qatcore.QuantBits, x: np.ndarray) -> list[qatcore.QatLayer]:
    """Return quantised layers with these weights; all scales have the least mean squared error."""
    config = qatcore.QatConfig(bits, per_channel=True)
    inputs = (x, np.maximum(floats[0].forward_infer(x), 0.0))
    layers = []
    for layer, values in zip(floats, inputs, strict=True):
        made = qatcore.QatLayer.from_weights(layer.weights, layer.bias, config, learn_scales=True)
        made.calibrate_from_data(values, qatcore.CalibMethod.MSE)
        weights = qatcore.CalibrationCollector(axis=0)
        weights.observe(layer.weights)
        made.weight_scale, _ = weights.mse_scale(bits=bits, symmetric=True)
        layers.append(made)
    return layers


def run(seed: int, epochs: int) -> tuple[dict[str, float], Curves]:
    """Return accuracies and curves for a seed, which sets the split of the data, the weights and the batches."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    x, labels = digits.data[order] / 16.0, digits.target[order]
    data = x[:1300], labels[:1300], x[1300:], labels[1300:]
    floats = [
        FloatLayer(rng.normal(size=shape) * np.sqrt(2 / shape[1]), np.zeros(shape[0]))
        for shape in ((UNITS, 64), (10, UNITS))
    ]
    curve = train(floats, data, epochs, 3e-3, rng)
    accuracies = {"float": curve[-1][1]}
    as_long = [FloatLayer(layer.weights, layer.bias) for layer in floats]
    curves = {"float": curve + train(as_long, data, epochs, 2e-3, rng)}
    accuracies["float, trained on"] = curves["float"][-1][1]
    for name, bits in WIDTHS.items():
        layers = quantised(floats, bits, data[0])
        accuracies[f"{name}, quantised afterwards"] = accuracy(layers, *data[2:])
        curves[name] = [(np.nan, np.nan)] * epochs + train(layers, data, epochs, 2e-3, rng)
        accuracies[f"{name}, trained"] = curves[name][-1][1]
    return accuracies, curves


def main() -> None:
    """Run all seeds, print the table and save the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--plot", default="train_digits.png", metavar="FILE.png")
    arguments = parser.parse_args()
    results: Results = {}
    for seed in range(arguments.seeds):
        accuracies, curves = run(seed, arguments.epochs)
        for name, value in accuracies.items():
            results.setdefault(name, []).append(value)
        if seed == 0:
            plot(curves, "digits, trained in NumPy, seed 0", arguments.plot)
    print(table(results))


if __name__ == "__main__":
    main()
