"""`CalibrationCollector`: a histogram and its thresholds as scale and zero point."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import as_array, as_number, as_plain_array
from .config import QuantBits, as_flag, as_member
from .errors import InvalidArgumentError
from .histogram import EMPTY, LeadingBitHistogram, leading_bit_histogram
from .scale import scale_and_zero_point
from .thresholds import kl_range, min_max_range, mse_range, percentile_range

# Guards the replacement of a collector's histogram, which takes microseconds.  One lock for all, so that
# a collector holds nothing that cannot be pickled; a new one in a forked child, where the thread that may
# have held it does not exist.
_commit = threading.Lock()


def _reset_after_fork() -> None:
    global _commit  # noqa: PLW0603
    _commit = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


class CalibrationCollector:
    """Observes values in constant memory and answers with scales.

    What it holds is a function of the multiset of observed values: batches, their order, threads and the
    order of merging leave no trace, to the bit.  NaN and infinities are counted and never enter a range.

    Every scale method takes ``bits`` (`QuantBits`, INT8), ``symmetric`` (False) and ``include_zero`` (False:
    the range is widened to hold 0; what is exported to a runtime needs it) and returns
    ``(scale, zero_point)``, a float and an int.  Asking changes nothing.  Without a range to speak of
    (nothing observed, or one value only where affine) they answer ``(1.0, 0)``.

    Collectors compare equal if they hold the same, can be pickled, and may be used from many threads.

    Examples
    --------
    >>> collector = CalibrationCollector()
    >>> collector.observe(np.linspace(-1.0, 2.0, 1001))
    >>> collector.observe([float("nan"), 0.5])
    >>> collector
    CalibrationCollector(n_elements=1002, min_val=-1.0, max_val=2.0, n_nan=1)
    >>> collector.min_max_scale()
    (0.011764705882352941, -43)
    """

    def __init__(self) -> None:
        self._histogram: LeadingBitHistogram = EMPTY

    def observe(self, x: Any, mask: Any = None) -> None:
        """Count the values of an array.

        Parameters
        ----------
        x : array_like, any shape
            float16, bfloat16, float32, float64 or integers.
        mask : array_like of bool, optional
            True where a value is to be seen, False for padding and mask fills; broadcast to x's shape.

        Raises
        ------
        InvalidArgumentError
            If `mask` does not broadcast to the shape of `x`.
        TypeError
            If `x` does not hold real numbers, or `mask` bools.
        """
        array = as_array(x, "x")
        if mask is not None:
            array = array[_as_mask(mask, array.shape)]
        # Values that are no longer kept need not be sorted.
        self._add(leading_bit_histogram(array, keep_values=self._histogram.values is not None))

    def merge(self, other: CalibrationCollector) -> None:
        """Add what another collector has observed, which is left as it is.

        Raises
        ------
        TypeError
            If `other` is not a `CalibrationCollector`.
        """
        if not isinstance(other, CalibrationCollector):
            raise TypeError(f"other: expected a CalibrationCollector, got {type(other).__name__}")
        self._add(other._histogram)

    def _add(self, histogram: LeadingBitHistogram) -> None:
        with _commit:
            self._histogram = self._histogram.merged(histogram)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CalibrationCollector):
            return NotImplemented
        return self._histogram == other._histogram

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        h = self._histogram
        unusual = {"n_nan": h.n_nan, "n_posinf": h.n_posinf, "n_neginf": h.n_neginf}
        counted = "".join(f", {name}={count}" for name, count in unusual.items() if count)
        return f"CalibrationCollector(n_elements={h.n_elements}, min_val={h.low}, max_val={h.high}{counted})"

    @property
    def min_val(self) -> float:
        """Least finite value; +inf if there is none.  Zero has no sign."""
        return self._histogram.low

    @property
    def max_val(self) -> float:
        """Greatest finite value; -inf if there is none."""
        return self._histogram.high

    @property
    def n_elements(self) -> int:
        """Number of finite values."""
        return self._histogram.n_elements

    @property
    def n_zero(self) -> int:
        """Number of zeros among them, of either sign."""
        return self._histogram.n_zero

    @property
    def n_nan(self) -> int:
        """Number of NaNs seen."""
        return self._histogram.n_nan

    @property
    def n_posinf(self) -> int:
        """Number of positive infinities seen."""
        return self._histogram.n_posinf

    @property
    def n_neginf(self) -> int:
        """Number of negative infinities seen."""
        return self._histogram.n_neginf

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the counts of the bins and their edges.

        Bins are the values that share sign, exponent and top 7 mantissa bits, 0.4 to 0.8 % wide.  Runs of
        empty bins are joined to one, and zeros are in the bin that holds 0.

        Returns
        -------
        counts : ndarray of int64, shape (n,)
        edges : ndarray of float64, shape (n + 1,)
            Ascending.  Both are empty if no finite value was observed.

        Examples
        --------
        >>> collector = CalibrationCollector()
        >>> collector.observe([-1.0, 0.0, 1.0, 1.001, 2.0])
        >>> counts, edges = collector.histogram()
        >>> counts.tolist()
        [1, 1, 2, 0, 1]
        >>> edges.tolist()
        [-1.0078125, -1.0, 1.0, 1.0078125, 2.0, 2.015625]
        """
        h = self._histogram
        if h.n_elements == 0:
            return np.empty(0, np.int64), np.empty(0)
        low, high, counts = h.bins()
        if h.n_zero or low[0] < 0.0 < high[-1]:
            # The bin of zero reaches to its neighbours, or is one of them: the least subnormals'.
            index = int(np.searchsorted(low, 0.0))
            left = high[index - 1] + 0.0 if index else 0.0
            right = low[index] if index < low.size else np.finfo(np.float64).smallest_subnormal * (index == 0)
            if left < right:
                low, high = np.insert(low, index, left), np.insert(high, index, right)
                counts = np.insert(counts, index, h.n_zero)
            else:
                counts[min(index, counts.size - 1)] += h.n_zero
        gaps = np.flatnonzero(high[:-1] < low[1:]) + 1
        edges = np.append(np.insert(low, gaps, high[gaps - 1]), high[-1])
        return np.insert(counts, gaps, 0), edges

    def min_max_scale(
        self, *, bits: QuantBits = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[float, int]:
        """Return scale and zero point for the range from the least to the greatest finite value.

        Parameters
        ----------
        bits : QuantBits
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float
        zero_point : int

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.
        """
        return self._answer(min_max_range(self._histogram), *_options(bits, symmetric, include_zero))

    def percentile_scale(
        self, p: float, *, bits: QuantBits = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[float, int]:
        """Return scale and zero point for the range that leaves out (100 - p) / 2 percent at either end.

        Parameters
        ----------
        p : float
            Percent of the values to keep; clamped to [0, 100].
        bits : QuantBits
        symmetric, include_zero : bool
            See the class.  A symmetric range reaches as far as the farther end.

        Returns
        -------
        scale : float
        zero_point : int

        Raises
        ------
        InvalidArgumentError
            If `p` is NaN, or `bits` names no format.

        Notes
        -----
        Linear inside a bin, which is at most 0.8 % wide, and never beyond the least and greatest value; exact
        while at most 8,192 nonzero values were observed.
        """
        percent = as_number(p, "p")
        if math.isnan(percent):
            raise InvalidArgumentError("p: expected a percentage from 0 to 100, got nan")
        return self._answer(percentile_range(self._histogram, percent), *_options(bits, symmetric, include_zero))

    def kl_divergence_scale(
        self, *, bits: QuantBits = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[float, int]:
        """Return scale and zero point for the range that loses least by Kullback-Leibler divergence.

        For data with light tails.  On heavy tails it clips too much: prefer `mse_scale`.

        Parameters
        ----------
        bits : QuantBits
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float
        zero_point : int

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.

        Notes
        -----
        After S. Migacz, "8-bit inference with TensorRT" (GTC 2017), made sound; docs/numerics.md has the formula.
        """
        bits, symmetric, include_zero = _options(bits, symmetric, include_zero)
        chosen = kl_range(self._histogram, bits, symmetric=symmetric, include_zero=include_zero)
        return self._answer(chosen, bits, symmetric, include_zero)

    def mse_scale(
        self, *, bits: QuantBits = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[float, int]:
        """Return scale and zero point for the range with the least mean squared error.

        Parameters
        ----------
        bits : QuantBits
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float
        zero_point : int

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.

        Notes
        -----
        The error of the format's own codes, clipping and rounding, integrated over each bin of the histogram;
        docs/numerics.md has the formula.
        """
        bits, symmetric, include_zero = _options(bits, symmetric, include_zero)
        chosen = mse_range(self._histogram, bits, symmetric=symmetric, include_zero=include_zero)
        return self._answer(chosen, bits, symmetric, include_zero)

    @staticmethod
    def _answer(chosen: tuple[float, float], bits: QuantBits, symmetric: bool, include_zero: bool) -> tuple[float, int]:
        scale, zero_point = scale_and_zero_point(*chosen, bits, symmetric=symmetric, include_zero=include_zero)
        return float(scale), int(zero_point)


def _options(bits: object, symmetric: object, include_zero: object) -> tuple[QuantBits, bool, bool]:
    return (
        as_member(QuantBits, bits, "bits"),
        as_flag(symmetric, "symmetric"),
        as_flag(include_zero, "include_zero"),
    )


def _as_mask(mask: object, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    array = as_plain_array(mask, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"mask: expected an array of bool, got {array.dtype}")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise InvalidArgumentError(f"mask: expected a shape that broadcasts to {shape}, got {array.shape}") from None
