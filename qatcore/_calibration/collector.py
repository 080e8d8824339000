"""`CalibrationCollector`: it makes histograms of values, and chooses scales and zero points from them."""

from __future__ import annotations

import math
import os
from typing import Any, Generic, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from .._base.arrays import as_plain_array
from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import QuantBits
from .._base.scale import Target, scale_and_zero_point
from .._base.types import CountT_co, FloatLike, FloatsT_co, PathLike, ZeroPointT_co
from .._base.validation import as_axes, as_count, as_flag, as_index, as_mask, as_number, as_scales, as_zero_points
from .accumulator import COUNTS, Accumulator
from .counting import count, count_along
from .divergence import kl_range
from .histogram import LARGEST_COUNT, LeadingBitHistogram, Range, State
from .summary import CalibrationSummary, promised_sqnr, summarize
from .thresholds import best_range, min_max_range, mse_range, percentile_range


class CalibrationCollector(Generic[FloatsT_co, ZeroPointT_co, CountT_co]):
    """Observe values in constant memory, and choose scales for them.

    The result depends only on the values seen.  Batch size, order, threads, machines and the order of merging do not
    change a single bit.  NaN and infinities are counted, but they never enter a range.

    Every scale method takes three options and returns ``(scale, zero_point)``; `best_scale` also returns a method.

    - ``bits`` is the format of the codes, a `QuantBits`.  The default is INT8.
    - ``symmetric`` says whether codes are symmetric about 0, with zero point 0.  The default is False: affine codes.
    - ``include_zero`` says whether the range is widened to hold 0.  The default is False.  Runtimes such as
      ONNX's need True, because their zero points have to be codes.

    Scale methods do not change the collector.  If only zeros were observed, they return ``(2**-12, 0)``.  If nothing
    was observed, they return ``(1.0, 0)``.  They also do so for affine codes if all values are equal and not 0, unless
    ``include_zero`` is True.

    Without an axis, all values share a histogram, and results are Python floats and ints.  With an axis, each channel
    has a histogram of its own.  Results are then arrays of shape `shape`: float64 for scales and values, int32 for zero
    points, and int64 for counts.  The result for a channel is, to the bit, the result of a collector that saw only the
    values of this channel.

    Two collectors are equal if they have the same axis, groups and histograms.  Collectors can be pickled, and several
    threads may use one.

    Parameters
    ----------
    axis : int or tuple of int, optional
        The axis of the channels; a negative one counts from the end.  With several axes, each combination of their
        indices is a channel.
    groups : int, optional
        How many neighbours along the (last) axis share a histogram.  The length of the axis must be a multiple of it.

    Raises
    ------
    InvalidArgumentError
        If an axis is named twice or is not from -64 to 64.
        If there are groups without an axis, or `groups` is less than 1.
    TypeError
        If an argument has a wrong type.

    Examples
    --------
    >>> collector = CalibrationCollector()
    >>> collector.observe(np.linspace(-1.0, 2.0, 1001))
    >>> collector.observe([float("nan"), 0.5])
    >>> collector
    CalibrationCollector(n_elements=1002, min_val=-1.0, max_val=2.0, n_nan=1)
    >>> collector.min_max_scale()
    (0.011764705882352941, -43)

    One scale for each of 3 channels, images in the layout of PyTorch and ONNX:

    >>> channels = CalibrationCollector(axis=1)
    >>> channels.observe(np.arange(24.0).reshape(2, 3, 2, 2))
    >>> channels.min_max_scale(symmetric=True)
    (array([0.11811024, 0.1496063 , 0.18110236]), array([0, 0, 0], dtype=int32))

    Weights in groups of 32 inputs, as int4 wants them:

    >>> weights = CalibrationCollector(axis=(0, 1), groups=32)
    >>> weights.observe(np.ones((8, 128)))
    >>> weights.shape
    (8, 4)
    """

    # The shape of the channels, and their state.  If there is an axis, it is missing before the first batch.
    _state: tuple[tuple[int, ...], Accumulator]

    @overload
    def __init__(self: OneCollector, axis: None = ..., *, groups: None = ...) -> None: ...
    @overload
    def __init__(self: ChannelCollector, axis: int | tuple[int, ...], *, groups: int | None = ...) -> None: ...
    @overload
    def __init__(self, axis: int | tuple[int, ...] | None, *, groups: int | None = ...) -> None: ...
    def __init__(self, axis: int | tuple[int, ...] | None = None, *, groups: int | None = None) -> None:
        self._axis = None if axis is None else as_axes(axis)
        self._groups = 1 if groups is None else as_count(groups, "groups")
        if self._groups > LARGEST_COUNT:
            raise InvalidArgumentError(f"groups: expected at most {LARGEST_COUNT}, got {groups}")
        if self._axis is None and groups is not None:
            raise InvalidArgumentError("groups: expected an axis to group along, got none")
        if self._axis is None:
            self._held((), Accumulator(1))

    def _held(self, shape: tuple[int, ...], added: Accumulator) -> tuple[tuple[int, ...], Accumulator]:
        """Return the channels' shape and state; before the first batch, set them to the given ones."""
        # `setdefault` is one step, so two threads that both bring a first batch get the same state.
        state: tuple[tuple[int, ...], Accumulator] = self.__dict__.setdefault("_state", (shape, added))
        return state

    def observe(self, x: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> None:
        """Count the values of an array.

        Parameters
        ----------
        x : array_like, any shape
            float16, bfloat16, float32, float64 or integers.  The shape may differ between batches, but not along the
            axis.
        mask : array_like of bool, optional
            True for values to count, False for padding and masked elements; broadcast to the shape of `x`.

        Raises
        ------
        InvalidArgumentError
            If `mask` does not broadcast to the shape of `x`.
            If `x` does not have the axis, has another number of channels than before, or does not divide into groups.
        TypeError
            If `x` does not hold real numbers, or `mask` does not hold bools.
        """
        array = as_plain_array(x, "x")
        seen = None if mask is None else as_mask(mask, array.shape)
        if self._axis is None:
            self._add((), count(array, seen))
            return
        self._observe_block(array, self._channels_of(array.shape), None, seen)

    def _observe_block(
        self,
        array: npt.NDArray[Any],
        shape: tuple[int, ...],
        start: tuple[int, ...] | None,
        seen: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Count a part of a batch: the batch's channels have shape `shape`, and this part's begin at `start`."""
        own = self._channels_of(array.shape)
        added = count_along(array, seen, self._normalised_axes(array.ndim), self._groups)
        if shape != own:
            places = np.arange(math.prod(shape)).reshape(shape)
            block = tuple(slice(first, first + size) for first, size in zip(start or (), own, strict=True))
            added = added.placed(places[block].reshape(-1), math.prod(shape))
        self._add(shape, added)

    def merge(self, other: CalibrationCollector) -> None:
        """Add what another collector has observed; the other collector does not change.

        Parameters
        ----------
        other : CalibrationCollector
            With the same axis, groups and number of channels.

        Raises
        ------
        InvalidArgumentError
            If `other` has another axis, other groups or another number of channels.
        TypeError
            If `other` is not a `CalibrationCollector`.
        """
        if not isinstance(other, CalibrationCollector):
            raise TypeError(f"other: expected a CalibrationCollector, got {type(other).__name__}")
        if (self._axis, self._groups) != (other._axis, other._groups):
            raise InvalidArgumentError(f"other: expected a collector with {self._kind()}, got one with {other._kind()}")
        if "_state" in other.__dict__:
            shape, added = other._state
            if other is self or self._shape() is None:  # never share arrays, nor add arrays to themselves
                added = added.trimmed()
            self._add(shape, added, "other")

    def _add(self, shape: tuple[int, ...], added: Accumulator, name: str = "x") -> None:
        own, state = self._held(shape, added)
        if own != shape:
            raise InvalidArgumentError(
                f"{name}: expected channels of shape {own} as before, got {shape} (with {self._kind()})"
            )
        if state is not added:
            try:
                state.add(added)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{name}: {error}") from None

    def _kind(self) -> str:
        groups = "" if self._groups == 1 else f", groups={self._groups}"
        return f"axis={self.axis}{groups}"

    def _normalised_axes(self, ndim: int) -> tuple[int, ...]:
        assert self._axis is not None
        axes = tuple(axis + ndim if axis < 0 else axis for axis in self._axis)
        if not all(0 <= axis < ndim for axis in axes):
            raise InvalidArgumentError(f"x: expected an array with axis {self.axis}, got one of {ndim} dimensions")
        if len(set(axes)) < len(axes):
            raise InvalidArgumentError(
                f"x: expected an array in which axes {self.axis} are different, got one of {ndim} dimensions"
            )
        return axes

    def _channels_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the channels of an array."""
        axes = self._normalised_axes(len(shape))
        *others, last = (shape[axis] for axis in axes)
        if last % self._groups:
            raise InvalidArgumentError(
                f"x: expected a multiple of {self._groups} along axis {axes[-1]} for groups={self._groups}, got {last}"
            )
        return (*others, last // self._groups)

    def _shape(self) -> tuple[int, ...] | None:
        """Return the shape of the channels; None before the first batch."""
        return self._state[0] if "_state" in self.__dict__ else None

    def _accumulator(self) -> Accumulator:
        return self._state[1] if "_state" in self.__dict__ else Accumulator(0)

    @property
    def _histogram(self) -> LeadingBitHistogram:
        """The histogram of what was observed up to now; kept until something is added."""
        if "_state" not in self.__dict__:
            return Accumulator(0).histogram()[1]
        accumulator = self._state[1]
        made: tuple[int, LeadingBitHistogram] | None = self.__dict__.get("_made")
        if made is None or made[0] != accumulator.changes:
            self._made = made = accumulator.histogram()
        return made[1]

    def _counts(self, *names: str) -> CountT_co:
        """Return the sum of some statistics; this needs no histogram."""
        stats = self._accumulator().stats
        total: npt.NDArray[np.int64] = stats[:, [COUNTS[name] for name in names]].sum(axis=1)
        return self._answers(total)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._of_state, (self._to_state(),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CalibrationCollector):
            return NotImplemented
        return (self._axis, self._groups, self._shape()) == (
            other._axis,
            other._groups,
            other._shape(),
        ) and self._histogram == other._histogram

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        h = self._histogram
        kind = "" if self._axis is None else f"{self._kind()}, shape={self.shape}, "
        unusual = {"n_nan": h.n_nan, "n_posinf": h.n_posinf, "n_neginf": h.n_neginf}
        counted = "".join(f", {name}={count.sum()}" for name, count in unusual.items() if count.any())
        low, high = h.low.min(initial=np.inf), h.high.max(initial=-np.inf)
        return f"CalibrationCollector({kind}n_elements={h.n_elements.sum()}, min_val={low}, max_val={high}{counted})"

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        """The axis of the channels, as it was given."""
        return self._axis[0] if self._axis is not None and len(self._axis) == 1 else self._axis

    @property
    def groups(self) -> int:
        """How many neighbours along the (last) axis share a histogram."""
        return self._groups

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of results: () without an axis; with an axis, it has only zeros before the first batch."""
        shape = self._shape()
        return (0,) * len(self._axis or ()) if shape is None else shape

    @property
    def min_val(self) -> FloatsT_co:
        """Least finite value; +inf if there is none.  Zero has no sign."""
        return self._answers(self._accumulator().extreme(0))

    @property
    def max_val(self) -> FloatsT_co:
        """Greatest finite value; -inf if there is none."""
        return self._answers(self._accumulator().extreme(1))

    @property
    def n_elements(self) -> CountT_co:
        """Number of finite values."""
        return self._counts("n_zero", "n_nonzero")

    @property
    def n_observed(self) -> int:
        """Number of all values seen in all channels together, with NaN and infinities."""
        return int(np.sum(self._counts("n_zero", "n_nonzero", "n_nan", "n_posinf", "n_neginf")))

    @property
    def n_zero(self) -> CountT_co:
        """Number of zeros seen, of either sign."""
        return self._counts("n_zero")

    @property
    def n_nan(self) -> CountT_co:
        """Number of NaNs seen."""
        return self._counts("n_nan")

    @property
    def n_posinf(self) -> CountT_co:
        """Number of positive infinities seen."""
        return self._counts("n_posinf")

    @property
    def n_neginf(self) -> CountT_co:
        """Number of negative infinities seen."""
        return self._counts("n_neginf")

    def channel(self, index: int | tuple[int, ...]) -> OneCollector:
        """Return a collector without an axis that has seen only the values of one channel.

        Parameters
        ----------
        index : int, or tuple of int if there are several axes
            A negative index counts from the end.

        Returns
        -------
        CalibrationCollector
            A copy: later batches do not change it.

        Raises
        ------
        InvalidArgumentError
            If there is no such channel.
        TypeError
            If `index` is neither an integer nor a tuple of integers.

        Examples
        --------
        >>> collector = CalibrationCollector(axis=-1)
        >>> collector.observe([[1.0, 10.0], [2.0, 20.0]])
        >>> collector.channel(1)
        CalibrationCollector(n_elements=2, min_val=10.0, max_val=20.0)
        """
        place = as_index(index)
        shape = self.shape
        if len(place) != len(shape) or not all(-n <= i < n for i, n in zip(place, shape, strict=True)):
            raise InvalidArgumentError(
                f"index: expected the index of a channel, for channels of shape {shape}, got {index}"
            )
        flat = np.arange(math.prod(shape)).reshape(shape)[place]
        return type(self)._of_state(State(None, 1, (), self._histogram.take(np.array([flat]))))

    def pooled(self) -> OneCollector:
        """Return a collector without an axis that has seen the values of all channels.

        Returns
        -------
        CalibrationCollector
            A copy, equal to a collector that has observed the same values without an axis.

        Examples
        --------
        >>> collector = CalibrationCollector(axis=-1)
        >>> collector.observe([[1.0, 10.0], [2.0, 20.0]])
        >>> collector.pooled()
        CalibrationCollector(n_elements=4, min_val=1.0, max_val=20.0)
        """
        return type(self)._of_state(State(None, 1, (), self._histogram.pooled()))

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the counts of the bins and their edges.

        The values of a bin share sign, exponent and top 7 mantissa bits, so a bin is 0.4 to 0.8 % wide.  Neighbouring
        empty bins are joined to one, and zeros are in the bin that holds 0.

        Returns
        -------
        counts : ndarray of int64, shape (*shape, n)
        edges : ndarray of float64, shape (n + 1,)
            Ascending, and the same for all channels.  If no finite value was observed, there are no bins and no edges.

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
        edges = h.edges()
        counts = np.zeros((h.channels, max(edges.size - 1, 0)), np.int64)
        if edges.size:
            bins = h.bins()
            channel = np.repeat(np.arange(h.channels), np.diff(bins.start))
            counts[channel, np.searchsorted(edges, bins.low, side="right") - 1] = bins.counts
            if h.n_zero.any():
                counts[:, np.searchsorted(edges, 0.0, side="right") - 1 - (edges[-1] == 0.0)] += h.n_zero
        shape = self.shape if math.prod(self.shape) == h.channels else (0,) * len(self.shape)
        return counts.reshape(*shape, counts.shape[1]), edges

    def min_max_scale(
        self, *, bits: QuantBits | str = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[FloatsT_co, ZeroPointT_co]:
        """Return scale and zero point for the range from the least to the greatest finite value.

        Parameters
        ----------
        bits : QuantBits or str
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float, or ndarray of float64, shape `shape`
        zero_point : int, or ndarray of int32, shape `shape`

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.
        TypeError
            If an argument has a wrong type.
        """
        return self._answer(min_max_range(self._histogram), Target.checked(bits, symmetric, include_zero))

    def percentile_scale(
        self,
        p: FloatLike,
        *,
        bits: QuantBits | str = QuantBits.INT8,
        symmetric: bool = False,
        include_zero: bool = False,
    ) -> tuple[FloatsT_co, ZeroPointT_co]:
        """Return scale and zero point for the range that leaves out (100 - p) / 2 percent at either end.

        Parameters
        ----------
        p : float
            Percent of the values to keep; clamped to [0, 100].
        bits : QuantBits or str
        symmetric, include_zero : bool
            See the class.  A symmetric range reaches as far as the farther of the two ends.

        Returns
        -------
        scale : float, or ndarray of float64, shape `shape`
        zero_point : int, or ndarray of int32, shape `shape`

        Raises
        ------
        InvalidArgumentError
            If `p` is NaN, or `bits` names no format.
        TypeError
            If an argument has a wrong type.

        Notes
        -----
        The ends are exact as long as at most 8,192 nonzero values were observed (in a channel).  After that, they are
        interpolated linearly inside a bin, which is at most 0.8 % wide.  They never lie beyond the least and the
        greatest value.
        """
        percent = as_number(p, "p")
        if math.isnan(percent):
            raise InvalidArgumentError("p: expected a percentage from 0 to 100, got nan")
        return self._answer(percentile_range(self._histogram, percent), Target.checked(bits, symmetric, include_zero))

    def kl_divergence_scale(
        self, *, bits: QuantBits | str = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[FloatsT_co, ZeroPointT_co]:
        """Return scale and zero point for the range that loses the least by Kullback-Leibler divergence.

        Use it for data with light tails.  On heavy tails it may clip too little or too much: prefer `mse_scale`.

        Parameters
        ----------
        bits : QuantBits or str
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float, or ndarray of float64, shape `shape`
        zero_point : int, or ndarray of int32, shape `shape`

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.
        TypeError
            If an argument has a wrong type.

        Notes
        -----
        The method is based on S. Migacz, "8-bit inference with TensorRT" (GTC 2017).  docs/numerics.md has the formula,
        and says what was changed to make it sound.
        """
        target = Target.checked(bits, symmetric, include_zero)
        return self._answer(kl_range(self._histogram, target), target)

    def mse_scale(
        self, *, bits: QuantBits | str = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[FloatsT_co, ZeroPointT_co]:
        """Return scale and zero point for the range with the least mean squared error.

        Parameters
        ----------
        bits : QuantBits or str
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float, or ndarray of float64, shape `shape`
        zero_point : int, or ndarray of int32, shape `shape`

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.
        TypeError
            If an argument has a wrong type.

        Notes
        -----
        The error is made by clipping and rounding to the format's codes, and is integrated over each bin of the
        histogram.  The whole range is kept unless the error of another range is less by more than the bins leave in
        doubt: at least four standard deviations.  With up to 8,192 nonzero values (in a channel), nothing is in doubt.
        docs/numerics.md has the formulas.
        """
        target = Target.checked(bits, symmetric, include_zero)
        return self._answer(mse_range(self._histogram, target), target)

    def best_scale(
        self, *, bits: QuantBits | str = QuantBits.INT8, symmetric: bool = False, include_zero: bool = False
    ) -> tuple[FloatsT_co, ZeroPointT_co, CalibMethod]:
        """Return scale, zero point and method, by the method with the least expected squared error.

        The candidates are MIN_MAX, PERCENTILE (99 %), KL and MSE, in this order.  Among equally good ones, it takes the
        first.  With an axis, all channels get the same method.

        Parameters
        ----------
        bits : QuantBits or str
        symmetric, include_zero : bool
            See the class.

        Returns
        -------
        scale : float, or ndarray of float64, shape `shape`
        zero_point : int, or ndarray of int32, shape `shape`
        method : CalibMethod
            The method that was chosen.

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format.
        TypeError
            If an argument has a wrong type.

        Examples
        --------
        >>> collector = CalibrationCollector()
        >>> collector.observe(np.random.default_rng(0).standard_normal(5000))
        >>> collector.best_scale(bits=QuantBits.INT4)[2]
        <CalibMethod.MSE: 'mse'>
        """
        target = Target.checked(bits, symmetric, include_zero)
        method, chosen = best_range(self._histogram, target)
        return *self._answer(chosen, target), method

    def sqnr(
        self,
        scale: npt.ArrayLike,
        zero_point: npt.ArrayLike = 0,
        *,
        bits: QuantBits | str = QuantBits.INT8,
        symmetric: bool = False,
    ) -> FloatsT_co:
        """Return the signal-to-quantisation-noise ratio that a scale promises for what was observed, in dB.

        Parameters
        ----------
        scale : float, or array_like of shape `shape`
            Finite and not negative.
        zero_point : int, or array_like of shape `shape`
            Any int32; 0 for FP8.
        bits : QuantBits or str
            Format of the codes.
        symmetric : bool
            Whether the least code is left out.

        Returns
        -------
        float, or ndarray of float64, shape `shape`
            +inf if there is no error, and NaN if there is no signal: only zeros, or nothing.

        Raises
        ------
        InvalidArgumentError
            If `bits` names no format, or a scale or zero point is outside its range or of another shape.
        TypeError
            If an argument has a wrong type.

        Notes
        -----
        The ratio is the sum of the squares of the values to the squared error that `mse_scale` minimises.

        Examples
        --------
        >>> collector = CalibrationCollector()
        >>> collector.observe(np.linspace(-1.0, 1.0, 1001))
        >>> [round(collector.sqnr(2.0 / steps), 1) for steps in (255, 200)]
        [48.1, 46.2]
        """
        target = Target.checked(bits, symmetric)
        h, shape = self._histogram, self.shape
        if target.bits is QuantBits.FP8 and np.any(as_zero_points(zero_point, shape, "zero_point")):
            raise InvalidArgumentError(f"zero_point: expected 0 for FP8, got {zero_point!s}")
        scales = np.broadcast_to(as_scales(scale, shape, "scale"), shape).reshape(-1)
        zero_points = np.broadcast_to(as_zero_points(zero_point, shape, "zero_point"), shape).reshape(-1)
        return self._answers(promised_sqnr(h, scales, zero_points, target))

    def summary(self, *, symmetric: bool = False) -> CalibrationSummary:
        """Return statistics of what was observed, and the quality that each method promises for each format.

        Parameters
        ----------
        symmetric : bool
            Whether the quality is computed for symmetric codes.

        Returns
        -------
        CalibrationSummary
            ``print`` shows it as a table.

        Raises
        ------
        TypeError
            If `symmetric` is not a bool.

        Examples
        --------
        >>> collector = CalibrationCollector()
        >>> collector.observe(np.append(np.linspace(-1.0, 2.0, 30001), np.nan))
        >>> print(collector.summary())
        values       30,001 finite, 1 zero, 1 NaN
        least        -1
        greatest     2
        mean         0.5
        std          0.8661
        0.1%         -0.997
        1%           -0.97
        10%          -0.7
        50%          0.5
        90%          1.7
        99%          1.97
        99.9%        1.997
        <BLANKLINE>
        SQNR in dB        min_max  percentile          kl         mse   (affine)
        int2                 10.8        10.9        10.8        13.0
        int4                 24.8        24.9        24.8        25.3
        int8                 49.4        49.1        49.4        49.4
        fp8                  31.9        32.0        31.9        32.1
        """
        fields = summarize(self._histogram, symmetric=as_flag(symmetric, "symmetric"))
        return CalibrationSummary(**{name: self._each(value) for name, value in fields.items()})

    def _each(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._each(item) for key, item in value.items()}
        return self._answers(value) if isinstance(value, np.ndarray) else value

    def save(self, path: PathLike) -> None:
        """Write this collector to a file, in the format of `save_calibration`.

        Parameters
        ----------
        path : str or PathLike
            Any suffix is allowed, and none is added; ``.npz`` is usual.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from .storage import write_states

        write_states(path, {"": self._to_state()})

    @classmethod
    def load(cls, path: PathLike) -> CalibrationCollector:
        """Read the collector of a file that holds exactly one.

        Parameters
        ----------
        path : str or PathLike

        Returns
        -------
        CalibrationCollector

        Raises
        ------
        InvalidArgumentError
            If the file is truncated, altered or of another kind, or does not hold exactly one collector.
            The message names the file and says what is wrong.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import os, tempfile
        >>> collector = CalibrationCollector()
        >>> collector.observe([1.0, 2.0])
        >>> path = os.path.join(tempfile.mkdtemp(), "collector.npz")
        >>> collector.save(path)
        >>> CalibrationCollector.load(path) == collector
        True
        """
        from .storage import read_states

        states = read_states(path)
        if len(states) != 1:
            raise InvalidArgumentError(
                f"{os.fspath(path)}: expected one collector, got {len(states)}; read the file with load_calibration"
            )
        return cls._of_state(*states.values())

    def _to_state(self) -> State:
        """Return the state of this collector, to be stored."""
        shape = self._shape()  # before the histogram, because another thread may bring the first batch in between
        histogram = self._histogram if shape is not None else Accumulator(0).histogram()[1]
        return State(self._axis, self._groups, shape, histogram)

    @classmethod
    def _of_state(cls, state: State) -> AnyCollector:
        """Return a collector with a state, which must be consistent."""
        collector = cls.__new__(cls)
        collector._axis, collector._groups = state.axis, state.groups
        if state.shape is not None:
            collector._held(state.shape, Accumulator.of_histogram(state.histogram))
        return collector

    def _answer(self, chosen: Range, target: Target) -> tuple[Any, Any]:
        scale, zero_point = scale_and_zero_point(*chosen, target)
        return self._answers(scale), self._answers(zero_point)

    @overload
    def _answers(self, by_channel: npt.NDArray[np.float64]) -> FloatsT_co: ...
    @overload
    def _answers(self, by_channel: npt.NDArray[np.int64]) -> CountT_co: ...
    @overload
    def _answers(self, by_channel: npt.NDArray[np.int32]) -> ZeroPointT_co: ...
    def _answers(self, by_channel: npt.NDArray[Any]) -> Any:
        """Return the numbers of the channels in the form that users get."""
        if self._axis is None:
            return by_channel[0].item()
        shape = self.shape
        if math.prod(shape) != by_channel.size:  # asked before the first batch, which has come since
            shape = (0,) * len(shape)
        return by_channel.reshape(shape).copy()


# Types for type checkers: a collector without an axis, one with an axis, and either.
OneCollector: TypeAlias = CalibrationCollector[float, int, int]
ChannelCollector: TypeAlias = CalibrationCollector[
    npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int64]
]
AnyCollector: TypeAlias = CalibrationCollector[Any, Any, Any]
