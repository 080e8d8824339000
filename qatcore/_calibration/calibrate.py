"""Calibrate layers and models from batches of activations."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sized
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from .._base.arrays import as_array, as_plain_array
from .._base.config import CalibMethod, QuantizationSpec
from .._base.errors import InvalidArgumentError
from .._base.formats import QuantBits
from .._base.scale import Target
from .._base.threads import for_each
from .._base.types import AnyArray, FloatOrArray, PathLike, ZeroPoint
from .._base.validation import as_flag, as_member
from .collector import AnyCollector, CalibrationCollector
from .thresholds import PERCENTILE

#: The names of layers, each with its batches.
LayerBatches: TypeAlias = Mapping[str, Iterable[npt.ArrayLike]] | Iterable[tuple[str, Iterable[npt.ArrayLike]]]

#: A range from fewer values says little about the data to come.
_FEW_VALUES = 256


class CalibrationWarning(UserWarning):
    """A calibration rests on few values."""

    __module__ = "qatcore"


class CalibrationDataset:
    """Keep batches in memory, for small calibrations.

    Iteration gives the batches.  Functions that take a dataset take any other iterable of batches too.

    Examples
    --------
    >>> dataset = CalibrationDataset()
    >>> dataset.push(np.linspace(0.0, 1.0, 200))
    >>> dataset.push(np.full((10, 10), 1.5))
    >>> len(dataset), calibrate_layer(dataset, CalibMethod.MIN_MAX)
    (2, (0.0058823529411764705, -128))
    """

    def __init__(self) -> None:
        self._data: list[AnyArray] = []

    def push(self, row: npt.ArrayLike) -> None:
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
    def data(self) -> list[AnyArray]:
        """The batches, in a new list."""
        return list(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[AnyArray]:
        return iter(self._data)


@overload
def calibrate_layer(
    layer_outputs: Iterable[npt.ArrayLike],
    method: CalibMethod | str = ...,
    *,
    bits: QuantBits | str = ...,
    symmetric: bool = ...,
    include_zero: bool = ...,
    axis: None = ...,
    groups: int | None = ...,
    progress: bool = ...,
) -> tuple[float, int]: ...
@overload
def calibrate_layer(
    layer_outputs: Iterable[npt.ArrayLike],
    method: CalibMethod | str = ...,
    *,
    bits: QuantBits | str = ...,
    symmetric: bool = ...,
    include_zero: bool = ...,
    axis: int | tuple[int, ...],
    groups: int | None = ...,
    progress: bool = ...,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]: ...
def calibrate_layer(
    layer_outputs: Iterable[npt.ArrayLike],
    method: CalibMethod | str = CalibMethod.KL,
    *,
    bits: QuantBits | str = QuantBits.INT8,
    symmetric: bool = False,
    include_zero: bool = False,
    axis: int | tuple[int, ...] | None = None,
    groups: int | None = None,
    progress: bool = False,
) -> tuple[FloatOrArray, ZeroPoint]:
    """Return scale and zero point for the batches of one layer.

    Parameters
    ----------
    layer_outputs : iterable of array_like
        Batches of any shape, taken one at a time and not kept; a one-dimensional array is one batch.
    method : CalibMethod or str
        ``PERCENTILE`` keeps 99 %; ``AUTO`` takes the method with the least expected squared error.
    bits : QuantBits or str
        Format of the codes.
    symmetric, include_zero : bool
        Whether codes are symmetric about 0, and whether the range is widened to hold 0; see `CalibrationCollector`.
    axis, groups : optional
        Give them for a scale for each channel; see `CalibrationCollector`.
    progress : bool
        Show a progress bar on standard error; needs tqdm, the extra ``progress``.

    Returns
    -------
    scale : float, or ndarray of float64
    zero_point : int, or ndarray of int32
        If there is an axis, both are arrays with one number for each channel.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown.
        If a batch does not have the axis, or has another number of channels than the batches before it.
        If there is an axis, and `layer_outputs` is an array instead of an iterable of batches.
    ModuleNotFoundError
        If `progress` is True and tqdm is not installed.
    TypeError
        If a batch does not hold real numbers, or an argument has a wrong type.

    Warns
    -----
    CalibrationWarning
        If there are fewer than 256 finite values, or if a channel has fewer.

    Examples
    --------
    >>> batches = (np.full((8, 64), i / 10) for i in range(11))
    >>> calibrate_layer(batches, CalibMethod.MIN_MAX)
    (0.00392156862745098, -128)
    """
    [spec] = _calibrate(
        [("layer_outputs", layer_outputs)],
        checked_options(method, bits, symmetric, include_zero),
        axis=axis,
        groups=groups,
        collectors=None,
        resume=False,
        progress=progress,
    )
    return spec.scale, spec.zero_point


def calibrate_model(
    layer_activations: LayerBatches,
    method: CalibMethod | str = CalibMethod.KL,
    *,
    bits: QuantBits | str = QuantBits.INT8,
    symmetric: bool = False,
    include_zero: bool = False,
    axis: int | tuple[int, ...] | None = None,
    groups: int | None = None,
    collectors: MutableMapping[str, AnyCollector] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> list[QuantizationSpec]:
    """Return a specification for each layer of a model.

    Parameters
    ----------
    layer_activations : mapping or sequence of pairs
        The layers' names, each with its batches as `calibrate_layer` takes them.
    method : CalibMethod or str
        ``PERCENTILE`` keeps 99 %; ``AUTO`` chooses a method for each layer, and the specification names it.
    bits : QuantBits or str
        Format of the codes.
    symmetric, include_zero : bool
        Whether codes are symmetric about 0, and whether the range is widened to hold 0; see `CalibrationCollector`.
    axis, groups : optional
        Give them for a scale for each channel; see `CalibrationCollector`.
    collectors : mutable mapping, optional
        The layers' collectors, by name.  Each layer's batches are added to its collector.  A missing collector is put
        into the mapping before the layer's first batch.  So if an exception ends the calibration, or Ctrl-C does, the
        mapping holds every whole batch that was observed.
    resume : bool
        Skip the batches that `collectors` have already seen.  Give the same batches in the same order: each collector's
        number of values says how many to skip.
    progress : bool
        Show a progress bar on standard error; needs tqdm, the extra ``progress``.

    Returns
    -------
    list of QuantizationSpec
        In the order of the layers.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown, or two layers have the same name.
        If a batch does not have the axis, or has another number of channels than the batches before it.
        If there is an axis, and a layer has an array instead of an iterable of batches.
        If a collector has another axis or other groups.
        If `resume` is True without `collectors`, or what a collector has seen does not end where a batch ends.
    ModuleNotFoundError
        If `progress` is True and tqdm is not installed.
    TypeError
        If an entry is not a name with batches, or a batch does not hold real numbers.

    Warns
    -----
    CalibrationWarning
        For each layer with fewer than 256 finite values, or with a channel that has fewer.

    Examples
    --------
    >>> activations = {"fc1": [np.linspace(0.0, 1.0, 300)], "fc2": [np.linspace(-1.0, 1.0, 300)]}
    >>> [(spec.layer_name, spec.zero_point) for spec in calibrate_model(activations, CalibMethod.MIN_MAX)]
    [('fc1', -128), ('fc2', 0)]
    """
    return _calibrate(
        layer_activations,
        checked_options(method, bits, symmetric, include_zero),
        axis=axis,
        groups=groups,
        collectors=collectors,
        resume=resume,
        progress=progress,
    )


def choose_specs(
    collectors: Mapping[str, CalibrationCollector],
    method: CalibMethod | str = CalibMethod.KL,
    *,
    bits: QuantBits | str = QuantBits.INT8,
    symmetric: bool = False,
    include_zero: bool = False,
) -> list[QuantizationSpec]:
    """Return a specification for each collector; the collectors do not change.

    Parameters
    ----------
    collectors : mapping of str to CalibrationCollector
        As `load_calibration` returns them.
    method : CalibMethod or str
        ``PERCENTILE`` keeps 99 %; ``AUTO`` chooses a method for each layer, and the specification names it.
    bits : QuantBits or str
        Format of the codes.
    symmetric, include_zero : bool
        Whether codes are symmetric about 0, and whether the range is widened to hold 0; see `CalibrationCollector`.

    Returns
    -------
    list of QuantizationSpec
        In the order of the collectors.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown.
    TypeError
        If `collectors` is not a mapping of names to collectors.

    Warns
    -----
    CalibrationWarning
        For each layer with fewer than 256 finite values, or with a channel that has fewer.

    Examples
    --------
    >>> collector = CalibrationCollector()
    >>> collector.observe(np.linspace(0.0, 1.0, 300))
    >>> [(spec.layer_name, spec.zero_point) for spec in choose_specs({"fc1": collector}, CalibMethod.MIN_MAX)]
    [('fc1', -128)]
    """
    return specs_of(collectors, *checked_options(method, bits, symmetric, include_zero))


def specs_of(
    collectors: Mapping[str, CalibrationCollector], method: CalibMethod, target: Target
) -> list[QuantizationSpec]:
    """Return a specification for each collector."""
    named = named_collectors(collectors)
    chosen: dict[str, tuple[Any, Any, CalibMethod]] = {}

    def choose(name: str) -> None:
        chosen[name] = choose_scale(named[name], method, target)

    for_each(list(named), choose)
    specs = []
    for name, collector in named.items():
        fewest = int(np.min(collector.n_elements, initial=_FEW_VALUES))
        if fewest < _FEW_VALUES or not np.size(collector.n_elements):
            of = "" if collector.axis is None else " of a channel"
            warnings.warn(
                f"{name}: calibrated from {fewest if np.size(collector.n_elements) else 0} finite values{of}; a range "
                f"from fewer than {_FEW_VALUES} says little about the data to come: give more data",
                CalibrationWarning,
                stacklevel=_stack_level(),
            )
        specs.append(
            QuantizationSpec(name, *chosen[name], target.bits, target.symmetric, collector.axis, collector.groups)
        )
    return specs


def choose_scale(
    collector: CalibrationCollector, method: CalibMethod, target: Target, percentile: float = PERCENTILE
) -> tuple[Any, Any, CalibMethod]:
    """Return a collector's scale and zero point, and the method: `method` itself, or the choice of AUTO."""
    options = vars(target)
    if method is CalibMethod.AUTO:
        return collector.best_scale(**options)
    if method is CalibMethod.PERCENTILE:
        return *collector.percentile_scale(percentile, **options), method
    answer = {
        CalibMethod.MIN_MAX: collector.min_max_scale,
        CalibMethod.KL: collector.kl_divergence_scale,
        CalibMethod.MSE: collector.mse_scale,
    }[method]
    return *answer(**options), method


def save_calibration(path: PathLike, collectors: Mapping[str, CalibrationCollector]) -> None:
    """Write collectors to a file.

    A crash at any moment leaves the old file or the new one.  Equal collectors give equal files.

    Parameters
    ----------
    path : str or PathLike
        Any suffix is allowed, and none is added; ``.npz`` is usual.
    collectors : mapping of str to CalibrationCollector
        The collectors, by name.

    Raises
    ------
    OSError
        If the file cannot be written.
    TypeError
        If `collectors` is not a mapping of names to collectors.

    Examples
    --------
    >>> import os, tempfile
    >>> collector = CalibrationCollector()
    >>> collector.observe(np.linspace(0.0, 1.0, 300))
    >>> path = os.path.join(tempfile.mkdtemp(), "calibration.npz")
    >>> save_calibration(path, {"fc1": collector})
    >>> load_calibration(path) == {"fc1": collector}
    True
    """
    from .storage import write_states

    write_states(path, {name: collector._to_state() for name, collector in named_collectors(collectors).items()})


def load_calibration(path: PathLike) -> dict[str, CalibrationCollector]:
    """Read the collectors of a file.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    dict of str to CalibrationCollector
        The collectors by name, in the order in which they were written.

    Raises
    ------
    InvalidArgumentError
        If the file is truncated, altered or of another kind.  The message names the file and says what is wrong.
    OSError
        If the file cannot be read.
    """
    from .storage import read_states

    return {name: CalibrationCollector._of_state(state) for name, state in read_states(path).items()}


def save_specs(path: PathLike, specs: Iterable[QuantizationSpec]) -> None:
    """Write specifications to a file, as JSON; `load_specs` gives them back to the last bit.

    A crash at any moment leaves the old file or the new one.

    Parameters
    ----------
    path : str or PathLike
        Any suffix is allowed, and none is added.
    specs : iterable of QuantizationSpec

    Raises
    ------
    OSError
        If the file cannot be written.
    TypeError
        If `specs` holds anything else.
    """
    chosen = list(specs)
    for spec in chosen:
        if not isinstance(spec, QuantizationSpec):
            raise TypeError(f"specs: expected QuantizationSpecs, got {type(spec).__name__}")
    from .storage import write_specs

    write_specs(path, chosen)


def load_specs(path: PathLike) -> list[QuantizationSpec]:
    """Read the specifications of a file.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    list of QuantizationSpec
        In the order in which they were written.

    Raises
    ------
    InvalidArgumentError
        If the file is truncated, altered or of another kind.  The message names the file and says what is wrong.
    OSError
        If the file cannot be read.
    """
    from .storage import read_specs

    return read_specs(path)


def checked_options(
    method: object, bits: object, symmetric: object, include_zero: object
) -> tuple[CalibMethod, Target]:
    """Return the method and the target that a user asks for; raise an error if an argument is wrong."""
    return as_member(CalibMethod, method, "method"), Target.checked(bits, symmetric, include_zero)


def _calibrate(
    layers: object,
    how: tuple[CalibMethod, Target],
    *,
    axis: int | tuple[int, ...] | None,
    groups: int | None,
    collectors: MutableMapping[str, AnyCollector] | None,
    resume: bool,
    progress: bool,
) -> list[QuantizationSpec]:
    resume = as_flag(resume, "resume")
    if resume and collectors is None:
        raise InvalidArgumentError(
            "resume: expected collectors of the interrupted run, got None; pass them as collectors"
        )
    kind = CalibrationCollector(axis, groups=groups)
    given = {} if collectors is None else named_collectors(collectors)
    for name, collector in given.items():
        if (collector.axis, collector.groups) != (kind.axis, kind.groups):
            raise InvalidArgumentError(
                f"collectors: expected axis={kind.axis} and groups={kind.groups}, got axis={collector.axis} and "
                f"groups={collector.groups} for {name!r}"
            )
    by_name = {} if collectors is None else collectors
    names = []
    with contextlib.ExitStack() as stack:
        report = None
        if as_flag(progress, "progress"):
            from .progress import BatchProgress

            report = stack.enter_context(BatchProgress(*_known_totals(layers)))
        for name, batches in distinct_layers(layers):
            if kind.axis is not None:
                refuse_array(name, batches)
            names.append(name)
            if name not in by_name:
                by_name[name] = CalibrationCollector(axis, groups=groups)
            _observe_all(name, batches, by_name[name], report, resume=resume)
    return specs_of({name: by_name[name] for name in names}, *how)


def _observe_all(name: str, batches: object, collector: CalibrationCollector, report: Any, *, resume: bool) -> None:
    seen = collector.n_observed if resume else 0
    left = seen
    if report is not None:
        report.layer(name)
    for index, batch in enumerate(iterate_batches(name, batches)):
        try:
            array = as_plain_array(batch, "x")
            if not left:
                collector.observe(array)
        except (InvalidArgumentError, TypeError) as error:
            error.add_note(f"x is batch {index} of {name}")
            raise
        if left >= array.size:
            left -= array.size
        elif left:
            raise InvalidArgumentError(
                f"{name}: its collector has seen {seen} values, and the last {left} end inside a "
                f"batch of {array.size}; pass the batches of the interrupted run, in the same order"
            )
        if report is not None:
            report.batch(array.nbytes)
    if left:
        raise InvalidArgumentError(
            f"{name}: its collector has seen {seen} values, {left} more than the batches hold; pass the batches of the "
            "interrupted run, in the same order"
        )


def refuse_array(name: str, batches: object) -> None:
    """Refuse an array in place of batches.

    Its first axis would count the batches, so each other axis has a lower number in a batch.
    """
    if hasattr(batches, "ndim"):
        raise InvalidArgumentError(
            f"{name}: expected an iterable of batches, because there is an axis, got an array of {batches.ndim} "
            "dimensions; pass [array] if it is one batch"
        )


def _known_totals(layers: object) -> tuple[int | None, int | None]:
    """Return the numbers of batches and of layers; None for one that is unknown before batches are taken."""
    if not isinstance(layers, (Mapping, list, tuple)):
        return None, None
    total = 0
    for _, batches in named_layers(layers):
        if getattr(batches, "ndim", 0) == 1:
            total += 1
        elif isinstance(batches, Sized) and getattr(batches, "ndim", 2) > 0:
            total += len(batches)
        else:
            return None, len(layers)
    return total, len(layers)


def _stack_level() -> int:
    """Return the `stacklevel` of the caller outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "qatcore":
        level, frame = level + 1, frame.f_back
    return level


def named_collectors(collectors: object) -> Mapping[str, CalibrationCollector]:
    """Return `collectors`, if it is a mapping of names to collectors."""
    if not isinstance(collectors, Mapping):
        raise TypeError(f"collectors: expected a mapping of names to collectors, got {type(collectors).__name__}")
    for name, collector in collectors.items():
        if not isinstance(name, str):
            raise TypeError(f"collectors: expected a str as a name, got {type(name).__name__}")
        if not isinstance(collector, CalibrationCollector):
            raise TypeError(f"collectors: expected a CalibrationCollector for {name!r}, got {type(collector).__name__}")
    return collectors


def iterate_batches(name: str, batches: object) -> Iterator[Any]:
    """Return an iterator over a layer's batches; a one-dimensional array is one batch."""
    if getattr(batches, "ndim", 0) == 1:  # also an array of another library
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


def distinct_layers(layers: object) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield what `named_layers` yields; two layers of the same name are an error."""
    names: set[str] = set()
    for name, batches in named_layers(layers):
        if name in names:
            raise InvalidArgumentError(f"layer_activations: expected one entry for each layer, got two for {name!r}")
        names.add(name)
        yield name, batches
