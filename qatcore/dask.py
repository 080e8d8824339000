"""Calibrate on a Dask cluster, to the same bits as on one machine; needs Dask, the extra ``dask``.

Each block is observed where it is.  Only collectors travel, and they are merged in a tree.  Any scheduler works:
threads, processes, or the active `distributed.Client`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

try:
    import dask
    import dask.array
    from dask.delayed import Delayed, delayed
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("qatcore.dask needs Dask: pip install 'qatcore[dask]'", name=_missing.name) from _missing

from ._base.arrays import as_array, kernel_dtype
from ._base.config import CalibMethod, QuantizationSpec
from ._base.errors import InvalidArgumentError
from ._base.formats import QuantBits
from ._calibration.calibrate import checked_options, distinct_layers, iterate_batches, specs_of
from ._calibration.collector import CalibrationCollector

if TYPE_CHECKING:
    from ._onnx.remote import calibrate_onnx

__all__ = ["calibrate_model", "calibrate_onnx", "collect"]

#: A Dask array, or batches.
Batches: TypeAlias = dask.array.Array | Iterable[Delayed | npt.ArrayLike]

_FAN_IN = 8  # collectors that one task merges


def collect(x: Batches, axis: int | tuple[int, ...] | None = None, *, groups: int | None = None) -> Delayed:
    """Return a delayed `CalibrationCollector` that observes a whole Dask array or all batches.

    Parameters
    ----------
    x : dask.array.Array, or iterable of delayed or array_like
        A Dask array with any chunks, or batches that `CalibrationCollector.observe` takes.  A one-dimensional array
        that is not Dask's is one batch.
    axis, groups : optional
        As for `CalibrationCollector`.  Chunks may split a Dask array along its channels as well.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` returns the collector, which equals one that observed everything locally.

    Raises
    ------
    InvalidArgumentError
        If `axis` or `groups` does not fit the array.  For batches, the error comes when they are computed.
    TypeError
        If `x` is neither a Dask array nor batches, or does not hold real numbers.  If another argument has a wrong
        type.

    Examples
    --------
    >>> import dask.array
    >>> x = dask.array.arange(100_000, chunks=10_000) * 0.5
    >>> collect(x).compute()
    CalibrationCollector(n_elements=100000, min_val=0.0, max_val=49999.5)
    """
    kind = CalibrationCollector(axis, groups=groups)
    if isinstance(x, dask.array.Array):
        kernel_dtype(x.dtype, "x")
        observed = list(_blocks(x, kind))
    elif isinstance(x, Iterable) and not isinstance(x, (str, bytes, Delayed, Mapping)):
        if kind.axis is not None and hasattr(x, "ndim"):
            raise InvalidArgumentError(
                f"x: expected a dask array or batches where there is an axis, got another array of {x.ndim} "
                "dimensions; pass [array] if it is one batch"
            )
        observed = [delayed(_observe)(kind, batch) for batch in iterate_batches("x", x)]
    else:
        raise TypeError(f"x: expected a dask array or an iterable of batches, got {type(x).__name__}")
    while len(observed) > 1:
        observed = [delayed(_merge)(observed[i : i + _FAN_IN]) for i in range(0, len(observed), _FAN_IN)]
    return observed[0] if observed else delayed(kind)


def calibrate_model(
    layer_activations: Mapping[str, Batches] | Iterable[tuple[str, Batches]],
    method: CalibMethod | str = CalibMethod.KL,
    *,
    bits: QuantBits | str = QuantBits.INT8,
    symmetric: bool = False,
    include_zero: bool = False,
    axis: int | tuple[int, ...] | None = None,
    groups: int | None = None,
) -> list[QuantizationSpec]:
    """Return a specification for each layer of a model, to the same bits as `qatcore.calibrate_model`.

    One computation observes all layers, on the active scheduler or `distributed.Client`.

    Parameters
    ----------
    layer_activations : mapping or sequence of pairs
        For each layer's name, an array or batches that `collect` takes.
    method : CalibMethod or str
        ``AUTO`` chooses a method for each layer, and the specification names it.
    bits : QuantBits or str
    symmetric, include_zero : bool
        As the methods of `CalibrationCollector` take them.
    axis, groups : optional
        As for `CalibrationCollector`, to get a scale for each channel.

    Returns
    -------
    list of QuantizationSpec
        In the order of the layers.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown, or two layers have the same name.  If a batch does not have the axis, or has
        more or fewer channels than others.
    TypeError
        If an entry is not a name with batches, or a batch does not hold real numbers.

    Warns
    -----
    CalibrationWarning
        For each layer that has fewer than 256 finite values in total, or in any channel.

    Examples
    --------
    >>> import dask.array
    >>> layers = {"fc1": dask.array.linspace(0.0, 1.0, 1000, chunks=100)}
    >>> calibrate_model(layers, "min_max")[0].zero_point
    -128
    """
    how = checked_options(method, bits, symmetric, include_zero)
    collectors = {name: collect(batches, axis, groups=groups) for name, batches in distinct_layers(layer_activations)}
    (observed,) = dask.compute(collectors)
    return specs_of(observed, *how)


def __getattr__(name: str) -> Any:
    """Import what also needs the extra ``onnx`` when it is asked for."""
    if name != "calibrate_onnx":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ._onnx.remote import calibrate_onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"qatcore.dask.{name} needs {error.name}: pip install 'qatcore[dask,onnx]'", name=error.name
        ) from error
    return calibrate_onnx


def _blocks(x: Any, kind: CalibrationCollector) -> Iterator[Delayed]:
    """Yield a delayed collector for each block of an array."""
    if kind.axis is None:
        for block in x.to_delayed().reshape(-1):
            yield delayed(_observe)(kind, block)
        return
    axes = kind._normalised_axes(x.ndim)
    if any(np.isnan(x.shape[axis]) for axis in axes):
        raise InvalidArgumentError(
            f"x: expected chunks of known size along axis {kind.axis}, got unknown sizes; call x.compute_chunk_sizes()"
        )
    shape = kind._channels_of(x.shape)
    x = _with_whole_groups(x, axes[-1], kind.groups)
    starts = [np.cumsum([0, *x.chunks[axis]]) // (kind.groups if axis == axes[-1] else 1) for axis in axes]
    blocks = x.to_delayed()
    for index in np.ndindex(blocks.shape):
        first = tuple(int(start[index[axis]]) for start, axis in zip(starts, axes, strict=True))
        yield delayed(_observe_block)(kind, blocks[index], shape, first)


def _with_whole_groups(x: Any, axis: int, groups: int) -> Any:
    """Return the array with chunks that split no group."""
    edges = np.cumsum([0, *x.chunks[axis]])
    if edges[-1] == 0:
        return x
    whole = np.unique(edges // groups * groups)
    return x if np.array_equal(edges, whole) else x.rechunk({axis: tuple(np.diff(whole).tolist())})


def _fresh(kind: CalibrationCollector) -> CalibrationCollector:
    return CalibrationCollector(kind.axis, groups=None if kind.axis is None else kind.groups)


def _observe(kind: CalibrationCollector, batch: Any) -> CalibrationCollector:
    collector = _fresh(kind)
    collector.observe(batch)
    return collector


def _observe_block(
    kind: CalibrationCollector, block: Any, shape: tuple[int, ...], start: tuple[int, ...]
) -> CalibrationCollector:
    collector = _fresh(kind)
    collector._observe_block(as_array(block, "x"), shape, start)
    return collector


def _merge(collectors: list[CalibrationCollector]) -> CalibrationCollector:
    # Merge into a new collector, because Dask may need the old ones again.
    total = _fresh(collectors[0])
    for collector in collectors:
        try:
            total.merge(collector)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(str(error).replace("other:", "x:", 1)) from None
    return total
