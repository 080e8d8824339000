"""Calibrating layers and models from batches of activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import as_array
from .collector import CalibrationCollector
from .config import CalibMethod, QuantBits, QuantizationSpec, as_flag, as_member
from .errors import InvalidArgumentError

#: The percentile that `calibrate_layer` uses, the reference's.
PERCENTILE = 99.0

#: A range from fewer values says little of the data to come.
_FEW_VALUES = 256


class CalibrationWarning(UserWarning):
    """A calibration rests on few values."""


class CalibrationDataset:
    """Batches kept in memory, for calibrations small enough.

    Iterating gives the batches; anything else that does is as good.

    Examples
    --------
    >>> dataset = CalibrationDataset()
    >>> dataset.push(np.linspace(0.0, 1.0, 200))
    >>> dataset.push(np.full((10, 10), 1.5))
    >>> len(dataset), calibrate_layer(dataset, CalibMethod.MIN_MAX)
    (2, (0.0058823529411764705, -128))
    """

    def __init__(self) -> None:
        self._data: list[npt.NDArray[Any]] = []

    def push(self, row: Any) -> None:
        """Add a copy of a batch.

        Parameters
        ----------
        row : array_like, any shape

        Raises
        ------
        TypeError
            If `row` does not hold real numbers.
        """
        self._data.append(np.array(as_array(row, "row")))

    @property
    def data(self) -> list[npt.NDArray[Any]]:
        """The batches, in a list of its own."""
        return list(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter(self._data)


def calibrate_layer(
    layer_outputs: Iterable[Any],
    method: CalibMethod = CalibMethod.KL,
    *,
    bits: QuantBits = QuantBits.INT8,
    symmetric: bool = False,
) -> tuple[float, int]:
    """Return scale and zero point for the batches of one layer.

    Parameters
    ----------
    layer_outputs : iterable of array_like
        Batches of any shape, taken one at a time and not kept; a one-dimensional array is one batch.
    method : CalibMethod
        ``PERCENTILE`` keeps 99 %.
    bits : QuantBits
    symmetric : bool

    Returns
    -------
    scale : float
    zero_point : int

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown.
    TypeError
        If a batch does not hold real numbers.

    Warns
    -----
    CalibrationWarning
        If there are fewer than 256 finite values.

    Examples
    --------
    >>> batches = (np.full((8, 64), i / 10) for i in range(11))
    >>> calibrate_layer(batches, CalibMethod.MIN_MAX)
    (0.00392156862745098, -128)
    """
    return _calibrate("layer_outputs", layer_outputs, *_checked(method, bits, symmetric))


def calibrate_model(
    layer_activations: Mapping[str, Iterable[Any]] | Iterable[tuple[str, Iterable[Any]]],
    method: CalibMethod = CalibMethod.KL,
    *,
    bits: QuantBits = QuantBits.INT8,
    symmetric: bool = False,
) -> list[QuantizationSpec]:
    """Return a specification for each layer of a model.

    Parameters
    ----------
    layer_activations : mapping or sequence of pairs
        From a layer's name to its batches, each as in `calibrate_layer`.
    method : CalibMethod
    bits : QuantBits
    symmetric : bool

    Returns
    -------
    list of QuantizationSpec
        In the order of the layers.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown.
    TypeError
        If an entry is not a name with batches, or a batch does not hold real numbers.

    Warns
    -----
    CalibrationWarning
        For each layer with fewer than 256 finite values.

    Examples
    --------
    >>> activations = {"fc1": [np.linspace(0.0, 1.0, 300)], "fc2": [np.linspace(-1.0, 1.0, 300)]}
    >>> [(spec.layer_name, spec.zero_point) for spec in calibrate_model(activations, CalibMethod.MIN_MAX)]
    [('fc1', -128), ('fc2', 0)]
    """
    checked = _checked(method, bits, symmetric)
    specs = []
    for name, batches in named_layers(layer_activations):
        scale, zero_point = _calibrate(name, batches, *checked)
        method, bits, symmetric = checked
        specs.append(QuantizationSpec(name, scale, zero_point, method, bits, symmetric))
    return specs


def choose_scale(
    collector: CalibrationCollector, method: CalibMethod, *, bits: QuantBits, symmetric: bool
) -> tuple[float, int]:
    """Return a collector's scale and zero point by the given method."""
    if method is CalibMethod.PERCENTILE:
        return collector.percentile_scale(PERCENTILE, bits=bits, symmetric=symmetric)
    answer = {
        CalibMethod.MIN_MAX: collector.min_max_scale,
        CalibMethod.KL: collector.kl_divergence_scale,
        CalibMethod.MSE: collector.mse_scale,
    }[method]
    return answer(bits=bits, symmetric=symmetric)


def _checked(method: object, bits: object, symmetric: object) -> tuple[CalibMethod, QuantBits, bool]:
    return (
        as_member(CalibMethod, method, "method"),
        as_member(QuantBits, bits, "bits"),
        as_flag(symmetric, "symmetric"),
    )


def _calibrate(
    name: str, batches: Iterable[Any], method: CalibMethod, bits: QuantBits, symmetric: bool
) -> tuple[float, int]:
    collector = CalibrationCollector()
    for batch in iterate_batches(name, batches):
        collector.observe(batch)
    if collector.n_elements < _FEW_VALUES:
        warnings.warn(
            f"{name}: calibrated from {collector.n_elements} finite values; a range from fewer than "
            f"{_FEW_VALUES} says little of the data to come",
            CalibrationWarning,
            stacklevel=3,
        )
    return choose_scale(collector, method, bits=bits, symmetric=symmetric)


def iterate_batches(name: str, batches: object) -> Iterator[Any]:
    """Return an iterator over a layer's batches; a one-dimensional array is one."""
    if isinstance(batches, np.ndarray) and batches.ndim == 1:
        return iter([batches])
    try:
        return iter(batches)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise TypeError(f"{name}: expected an iterable of batches, got {type(batches).__name__}") from None


def named_layers(layers: object) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield the names and batches of a mapping or a sequence of pairs."""
    if isinstance(layers, Mapping):
        layers = layers.items()
    if not isinstance(layers, Iterable) or isinstance(layers, str):
        raise TypeError(f"layer_activations: expected a mapping or pairs, got {type(layers).__name__}")
    for entry in layers:
        if not isinstance(entry, (tuple, list)):
            raise TypeError(f"layer_activations: expected pairs of name and batches, got {type(entry).__name__}")
        if len(entry) != 2:
            raise InvalidArgumentError(f"layer_activations: expected pairs of name and batches, got {len(entry)} items")
        if not isinstance(entry[0], str):
            raise TypeError(f"layer_activations: expected a str as a layer's name, got {type(entry[0]).__name__}")
        yield entry[0], entry[1]
