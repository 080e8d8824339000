"""The demonstration: a network on real images, quantised in every format with every calibration method.

It needs scikit-learn, for its images and for training, which knows nothing of quantisation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .._base.config import CalibMethod, QatConfig
from .._base.formats import QuantBits
from .._base.threads import get_num_threads, set_num_threads
from .._linear.layer import QatLayer

#: Widths of the hidden layers, chosen for accuracy on a part of the training images, over several seeds.
_HIDDEN = (256, 128)

_CONFIGS = {
    "int8": QatConfig(QuantBits.INT8),
    "int4 per channel": QatConfig(QuantBits.INT4, per_channel=True),
    "fp8": QatConfig(QuantBits.FP8),
}

_BITS_PER_WEIGHT = {QuantBits.INT8: 8, QuantBits.INT4: 4, QuantBits.FP8: 8}

_RUNS = 9


@dataclass(frozen=True)
class DemoRow:
    """The results of one format and calibration method on the held-out images.

    Parameters
    ----------
    format : str
    method : CalibMethod or None
        None for the float network.
    accuracy : float
        Share of the images that get the right class, 0 to 1.
    agreement : float
        Share of the images that get the same class as from the float network, 0 to 1.
    weight_bytes : int
        Size of the weights or of their codes, without scales and biases.
    milliseconds : float
        Median time of inference on all held-out images.
    """

    format: str
    method: CalibMethod | None
    accuracy: float
    agreement: float
    weight_bytes: int
    milliseconds: float


@dataclass(frozen=True)
class DemoReport:
    """The results of the demonstration, and the network and images that they belong to.

    Parameters
    ----------
    widths : tuple of int
        Numbers of units in the network's layers, from its inputs to its outputs.
    training_images, held_out_images : int
    rows : tuple of DemoRow
        The first is the float network's.
    """

    widths: tuple[int, ...]
    training_images: int
    held_out_images: int
    rows: tuple[DemoRow, ...]


class _Layer(Protocol):
    def forward_infer(self, x: Any) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class _FloatLayer:
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def forward_infer(self, x: Any) -> npt.NDArray[Any]:
        return np.asarray(x @ self.weights.T + self.bias)


def run_demo(seed: int = 0) -> DemoReport:
    """Train the network, quantise it in every format with every method, and measure each on held-out images.

    Calibration observes the inputs of each layer while the float network runs on the training images.  The held-out
    images influence no choice.

    Parameters
    ----------
    seed : int
        Random seed for the split of the images and for the training, 0 to 2**32 - 1.

    Returns
    -------
    DemoReport
        Its times are measured on one thread.
    """
    images, digits = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)  # pixels are 0 to 16
    train, test, train_digits, test_digits = train_test_split(
        images, digits, test_size=0.5, stratify=digits, random_state=seed
    )
    with _one_thread():
        network = _train(train, train_digits, seed)
        float_answers = _answers(network, test)
        inputs = _layer_inputs(network, train)

        def measure(name: str, method: CalibMethod | None, bits: int, layers: Sequence[_Layer]) -> DemoRow:
            answers = _answers(layers, test)
            return DemoRow(
                format=name,
                method=method,
                accuracy=float(np.mean(answers == test_digits)),
                agreement=float(np.mean(answers == float_answers)),
                weight_bytes=sum(layer.weights.size for layer in network) * bits // 8,
                milliseconds=_milliseconds(layers, test),
            )

        rows = [measure("float32", None, 32, network)]
        for name, config in _CONFIGS.items():
            for method in (CalibMethod.MIN_MAX, CalibMethod.PERCENTILE, CalibMethod.KL, CalibMethod.MSE):
                layers = [_quantised(*pair, config, method) for pair in zip(network, inputs, strict=True)]
                rows.append(measure(name, method, _BITS_PER_WEIGHT[config.bits], layers))
    widths = (images.shape[1], *(layer.bias.size for layer in network))
    return DemoReport(widths, len(train), len(test), tuple(rows))


def format_report(report: DemoReport) -> str:
    """Return a report as a table of at most 80 columns, without a final newline.

    Parameters
    ----------
    report : DemoReport

    Returns
    -------
    str
    """
    network = "-".join(map(str, report.widths))
    lines = [
        f"scikit-learn's digits, MLP {network} (ReLU): "
        f"{report.training_images} images train, {report.held_out_images} test",
        "",
        f"{'format':<18}{'calibration':<13}{'accuracy':>8}{'agreement':>12}{'weight bytes':>15}{'time':>11}",
    ]
    lines += [
        f"{row.format:<18}{row.method.value if row.method else '-':<13}{row.accuracy:>8.2%}{row.agreement:>12.2%}"
        f"{row.weight_bytes:>15,}{row.milliseconds:>8.2f} ms"
        for row in report.rows
    ]
    lines += [
        "",
        "agreement: with float32.  time: all test images on one thread, median.",
        f"weight bytes: without the {len(report.widths) - 1} scales (int4: {sum(report.widths[1:])}); "
        "two int4 codes a byte.",
    ]
    return "\n".join(lines)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit BLAS and qatcore to one thread: such small layers gain nothing from more, and times stay steady."""
    threads = get_num_threads()
    set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        set_num_threads(threads)


def _train(images: npt.NDArray[np.float32], digits: npt.NDArray[Any], seed: int) -> list[_FloatLayer]:
    # Training stops when the loss stops falling, long before the last iteration allowed.
    classifier = MLPClassifier(_HIDDEN, activation="relu", batch_size=32, max_iter=1000, random_state=seed)
    classifier.fit(images, digits)
    parameters = zip(classifier.coefs_, classifier.intercepts_, strict=True)
    return [_FloatLayer(weights.T, bias) for weights, bias in parameters]


def _quantised(layer: _FloatLayer, inputs: npt.NDArray[Any], config: QatConfig, method: CalibMethod) -> QatLayer:
    quantised = QatLayer.from_weights(layer.weights, layer.bias, config)
    quantised.calibrate_from_data(inputs, method)
    return quantised


def _layer_inputs(layers: Sequence[_Layer], images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the inputs of each layer."""
    inputs = [images]
    for layer in layers[:-1]:
        inputs.append(np.maximum(layer.forward_infer(inputs[-1]), 0.0))
    return inputs


def _answers(layers: Sequence[_Layer], images: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the digit of each image: the index of the greatest output, because the classes are 0 to 9."""
    return np.asarray(layers[-1].forward_infer(_layer_inputs(layers, images)[-1]).argmax(axis=1))


def _milliseconds(layers: Sequence[_Layer], images: npt.NDArray[Any]) -> float:
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        _answers(layers, images)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
