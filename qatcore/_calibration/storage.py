"""Write and read calibrations: the states of collectors, and the scales chosen from them.

A file of collectors is a ``.npz`` as NumPy writes it, with a JSON header beside the arrays.  Nothing in it is ever
executed.  Everything that is read is checked: a damaged file is an error, and never another calibration.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .._base.config import QuantizationSpec
from .._base.errors import InvalidArgumentError
from .._base.types import PathLike
from .._base.validation import MOST_AXES
from .histogram import BINADES, COUNT_FIELDS, FRACTION, LARGEST_COUNT, LeadingBitHistogram, State

_VERSION = 1
_STATES_FORMAT = "qatcore calibration"
_SPECS_FORMAT = "qatcore specifications"
_HEADER = "header.json"
_DEFLATE_RATIO = 1032  # deflate never compresses better than this
_MOST_CHANNELS = 1 << 50  # so that channel * 4096 + binade fits int64


def write_states(path: PathLike, states: dict[str, State], about: dict[str, Any] | None = None) -> None:
    """Write the states of collectors and, as JSON, what else there is to say about them.

    A crash at any moment leaves the old file or the new one.
    """
    histograms = [state.histogram for state in states.values()]
    arrays = {
        "low": _joined([h.low for h in histograms], np.float64),
        "high": _joined([h.high for h in histograms], np.float64),
        **{name: _joined([getattr(h, name) for h in histograms], np.int64) for name in COUNT_FIELDS},
        "values": _joined([h.values for h in histograms], np.float64),
        "owners": _joined([h.owners for h in histograms], np.int64),
        "counts": _joined([h.counts for h in histograms], np.int64, (FRACTION,)),
    }
    entries = [
        {
            "name": name,
            "axis": state.axis,
            "groups": state.groups,
            "shape": state.shape,
            "values": state.histogram.values.size,
            "rows": state.histogram.owners.size,
        }
        for name, state in states.items()
    ]
    header = {
        "format": _STATES_FORMAT,
        "version": _VERSION,
        "collectors": entries,
        "sha256": _digest(entries, arrays, about),
    }
    if about is not None:
        header["about"] = about
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(_HEADER), json.dumps(header))
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), content.getvalue())
    replace_file(path, lambda file: file.write(buffer.getvalue()))


def read_states(path: PathLike) -> dict[str, State]:
    """Read the states that `write_states` has written; raise the same errors as `read_described`."""
    return read_described(path)[0]


def read_described(path: PathLike) -> tuple[dict[str, State], dict[str, Any]]:
    """Read what `write_states` has written: the states, and what else the file says about them.

    If it says nothing else, the second result is empty.

    Raises
    ------
    InvalidArgumentError
        If the file is truncated, altered or of another kind.  The message names the file and says what is wrong.
    OSError
        If the file cannot be read at all.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read()
    try:
        return _parsed_states(data)
    except _Fault as fault:
        raise InvalidArgumentError(f"{name}: {fault}") from None
    except Exception as error:  # zipfile, zlib and json raise many kinds of errors on damaged input
        raise InvalidArgumentError(f"{name}: not a calibration file, or a damaged one: {_said(error)}") from error


def write_specs(path: PathLike, specs: Iterable[QuantizationSpec]) -> None:
    """Write specifications as JSON, in which numbers are exact."""
    entries = [
        {
            "layer_name": spec.layer_name,
            "scale": _to_json(spec.scale),
            "zero_point": np.asarray(spec.zero_point).tolist(),
            "method": spec.method.value,
            "bits": spec.bits.value,
            "symmetric": spec.symmetric,
            "axis": spec.axis,
            "groups": spec.groups,
        }
        for spec in specs
    ]
    content = {"format": _SPECS_FORMAT, "version": _VERSION, "specs": entries}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_specs(path: PathLike) -> list[QuantizationSpec]:
    """Read what `write_specs` has written; raise the same errors as `read_described`."""
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read()
    try:
        content = _checked_header(json.loads(data), _SPECS_FORMAT)
        return [_parsed_spec(index, entry) for index, entry in enumerate(_listed(content, "specs"))]
    except _Fault as fault:
        raise InvalidArgumentError(f"{name}: {fault}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{name}: not a file of specifications, or a damaged one: {_said(error)}") from error


class _Fault(Exception):
    """What is wrong with a file."""


def _require(condition: object, fault: str) -> None:
    if not condition:
        raise _Fault(fault)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# --- writing ------------------------------------------------------------------------------------------


def _joined(arrays: list[npt.NDArray[Any]], dtype: Any, row: tuple[int, ...] = ()) -> npt.NDArray[Any]:
    return np.concatenate([np.empty((0, *row), dtype), *arrays]).astype(np.dtype(dtype).newbyteorder("<"), copy=False)


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member without a date, so that the same state gives the same file."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _digest(entries: object, arrays: dict[str, npt.NDArray[Any]], about: object) -> str:
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    if about is not None:
        digest.update(json.dumps(about, sort_keys=True).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def replace_file(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Let a function write a file under a temporary name, and rename it once it is safely on disk."""
    target = os.path.realpath(os.fsdecode(path))
    folder = os.path.dirname(target)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    temporary = os.path.join(folder, f".{secrets.token_hex(12)}.tmp")  # a short name is always valid
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in {None, temporary}:
            error.filename = os.fspath(path)  # the name that the caller knows
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name itself has to reach the disk
        with contextlib.suppress(PermissionError):  # a folder may be writable but not readable
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _to_json(scale: Any) -> Any:
    """Return a scale as JSON, with a str for infinity, which JSON does not have."""
    if isinstance(scale, np.ndarray):
        return [_to_json(item) for item in scale] if scale.ndim else _to_json(float(scale))
    return float(scale) if math.isfinite(scale) else str(float(scale))


# --- reading ------------------------------------------------------------------------------------------


def _checked_header(header: Any, kind: str) -> dict[str, Any]:
    _require(
        isinstance(header, dict) and header.get("format") == kind,
        f'expected "{kind}" as the format in its header, got another or none',
    )
    version = header.get("version")
    _require(type(version) is int and version >= 1, f"expected a version number, got {version!r}")
    _require(
        version <= _VERSION,
        f"made by a newer qatcore: expected format {_VERSION} or less, got {version}; upgrade qatcore",
    )
    result: dict[str, Any] = header
    return result


def _listed(header: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = header.get(key)
    _require(
        isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries),
        f'expected "{key}" to be a list of objects',
    )
    result: list[dict[str, Any]] = header[key]
    return result


def _parsed_states(data: bytes) -> tuple[dict[str, State], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = _checked_header(json.loads(_content(archive, _HEADER, len(data) * _DEFLATE_RATIO)), _STATES_FORMAT)
        entries = _listed(header, "collectors")
        about = header.get("about")
        _require(about is None or isinstance(about, dict), f'expected "about" to be an object, got {about!r}')
        sizes = [_checked_entry(index, entry) for index, entry in enumerate(entries)]
        channels, values, rows = (sum(size[part] for size in sizes) for part in range(3))
        shapes = {
            "low": (channels,),
            "high": (channels,),
            **dict.fromkeys(COUNT_FIELDS, (channels,)),
            "values": (values,),
            "owners": (rows,),
            "counts": (rows, FRACTION),
        }
        arrays = {
            name: _array(
                archive, name, shape, "<f8" if name in ("low", "high", "values") else "<i8", len(data) * _DEFLATE_RATIO
            )
            for name, shape in shapes.items()
        }
    digest = _digest(entries, arrays, about)
    _require(
        header.get("sha256") == digest, "its contents do not match the digest in its header: it was altered or damaged"
    )
    states: dict[str, State] = {}
    channel = value = row = 0
    for entry, (n_channels, n_values, n_rows) in zip(entries, sizes, strict=True):
        of_channels = slice(channel, channel + n_channels)
        histogram = LeadingBitHistogram(
            low=arrays["low"][of_channels],
            high=arrays["high"][of_channels],
            **{name: arrays[name][of_channels] for name in COUNT_FIELDS},
            values=arrays["values"][value : value + n_values],
            owners=arrays["owners"][row : row + n_rows],
            counts=arrays["counts"][row : row + n_rows],
        )
        with np.errstate(all="ignore"):
            fault = _inconsistency(histogram)
        _require(fault is None, f"the collector {entry['name']!r} is not consistent: {fault}")
        axis, shape = entry["axis"], entry["shape"]
        states[entry["name"]] = State(
            None if axis is None else tuple(axis), entry["groups"], None if shape is None else tuple(shape), histogram
        )
        channel, value, row = channel + n_channels, value + n_values, row + n_rows
    _require(len(states) == len(entries), "two collectors have the same name")
    return states, about or {}


def _content(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return the bytes of a member; if it claims an impossible size, it is not even unpacked."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        what = "not a calibration file: " if name == _HEADER else ""
        raise _Fault(f"{what}there is no {name} in it") from None
    _require(info.file_size <= most, f"{name} claims to have {info.file_size} bytes, more than the file can hold")
    with archive.open(info) as member:
        content = member.read(info.file_size + 1)
    _require(len(content) == info.file_size, f"{name} does not have the size it claims")
    return content


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, most: int) -> npt.NDArray[Any]:
    """Return an array in native, writable memory; it must have the given shape and dtype."""
    content = io.BytesIO(_content(archive, f"{name}.npy", most))
    _require(np.lib.format.read_magic(content) == (1, 0), f"{name}.npy has an unknown version")
    found = np.lib.format.read_array_header_1_0(content, max_header_size=1000)
    expected = (shape, False, np.dtype(dtype))
    _require(found == expected, f"expected {name}.npy to be (shape, order, type) {expected}, got {found}")
    data = content.read()
    _require(len(data) == math.prod(shape) * 8, f"{name}.npy is not as long as its shape")
    return np.frombuffer(data, dtype).reshape(shape).astype(np.dtype(dtype).newbyteorder("="))


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value <= LARGEST_COUNT


def _checked_entry(index: int, entry: dict[str, Any]) -> tuple[int, int, int]:
    """Return how many channels, values and rows of counts a collector has in the arrays."""
    where = f"collectors[{index}]"
    axis, shape, groups = entry.get("axis"), entry.get("shape"), entry.get("groups")
    _require(isinstance(entry.get("name"), str), f"{where}: expected a name")
    _require(
        axis is None
        or (
            isinstance(axis, list)
            and axis
            and all(type(a) is int and abs(a) <= MOST_AXES for a in axis)
            and len(set(axis)) == len(axis)
        ),
        f"{where}: expected an axis, got {axis!r}",
    )
    _require(
        _is_count(groups, 1) and (axis is not None or groups == 1),
        f"{where}: expected groups that fit the axis, got {groups!r}",
    )
    if shape is None:
        _require(axis is not None, f"{where}: expected a shape")
        channels = 0
    else:
        _require(
            isinstance(shape, list)
            and len(shape) == len(axis or ()) <= MOST_AXES
            and all(_is_count(n) for n in shape)
            and math.prod(n for n in shape if n) <= _MOST_CHANNELS,
            f"{where}: expected a shape that fits the axis, got {shape!r}",
        )
        channels = math.prod(shape)
    for key in ("values", "rows"):
        _require(_is_count(entry.get(key)), f"{where}: expected {key} to be a number, got {entry.get(key)!r}")
    return channels, entry["values"], entry["rows"]


def _inconsistency(h: LeadingBitHistogram) -> str | None:
    """Return what is wrong with a histogram that no collector could hold; None if nothing is."""
    for is_wrong, fault in (
        (_has_wrong_counts, "a count is out of range, or a range does not fit its counts"),
        (_has_wrong_values, "the values do not match their count, are not finite, or are not in order"),
        (_has_wrong_rows, "the binades are not in order, or their counts do not add up"),
        (_has_wrong_extremes, "an extreme does not lie where the values or bins end"),
    ):
        if is_wrong(h):
            return fault
    return None


def _has_wrong_counts(h: LeadingBitHistogram) -> bool:
    for name in COUNT_FIELDS:
        n = getattr(h, name)
        if ((n < 0) | (n > LARGEST_COUNT)).any() or n.sum(dtype=np.float64) > LARGEST_COUNT:
            return True
    empty = (h.low == np.inf) & (h.high == -np.inf) & (h.n_low == 0) & (h.n_high == 0)
    sound = np.isfinite(h.low) & np.isfinite(h.high) & (h.low <= h.high) & (h.n_low > 0) & (h.n_high > 0)
    negative_zero = ((h.low == 0.0) & np.signbit(h.low)) | ((h.high == 0.0) & np.signbit(h.high))
    constant = (h.n_low == h.n_elements) & (h.n_high == h.n_elements)
    sound &= ~negative_zero & ((h.low < h.high) | constant)
    return not np.where(h.n_elements > 0, sound, empty).all()


def _has_wrong_values(h: LeadingBitHistogram) -> bool:
    sizes = np.diff(h.value_start)
    if sizes.sum() != h.values.size or not np.isfinite(h.values).all() or (h.values == 0.0).any():
        return True
    channel = np.repeat(np.arange(h.channels), sizes)
    return bool(((h.values[1:] < h.values[:-1]) & (channel[1:] == channel[:-1])).any())


def _has_wrong_rows(h: LeadingBitHistogram) -> bool:
    channel, exponent = h.owners // BINADES, h.owners % (BINADES // 2)
    if (
        (h.owners[1:] <= h.owners[:-1]).any()
        or (h.owners < 0).any()
        or (channel >= h.channels).any()
        or h.is_exact[channel].any()
        or (exponent == BINADES // 2 - 1).any()
        or ((h.counts < 0) | (h.counts > LARGEST_COUNT)).any()
    ):
        return True
    sums = h.counts.sum(axis=1)
    total, magnitude = np.zeros(h.channels, np.int64), np.zeros(h.channels)
    np.add.at(total, channel, sums)
    np.add.at(magnitude, channel, sums.astype(np.float64))  # finds sums for which int64 wraps
    wrong = (total != h.n_nonzero) | (magnitude > LARGEST_COUNT)
    return bool((sums == 0).any() or wrong[~h.is_exact].any())


def _has_wrong_extremes(h: LeadingBitHistogram) -> bool:
    bins = h.bins()
    filled = np.diff(bins.start) > 0
    there = h.n_elements > 0
    for extreme, occurrences, sign in ((h.low, h.n_low, 1), (h.high, h.n_high, -1)):
        # Treat each extreme as the least value; for the greatest one, mirror everything.
        value = sign * extreme
        edges = (bins.low, bins.high) if sign > 0 else (-bins.high, -bins.low)
        first = bins.start[:-1][filled] if sign > 0 else bins.start[1:][filled] - 1
        start, stop, held = np.full(h.channels, np.inf), np.full(h.channels, np.inf), np.zeros(h.channels, np.int64)
        start[filled], stop[filled], held[filled] = edges[0][first], edges[1][first], bins.counts[first]
        in_zeros = (h.n_zero > 0) & (start >= 0.0)
        in_bin = ~in_zeros & there
        exact = in_bin & h.is_exact
        if (
            (in_zeros & ((value != 0.0) | (occurrences != h.n_zero))).any()
            or (in_bin & ~((start <= value) & (value <= stop) & (value != 0.0) & (occurrences <= held))).any()
            or (h.values[(h.value_start[:-1] if sign > 0 else h.value_start[1:] - 1)[exact]] != extreme[exact]).any()
        ):
            return True
    return False


def _parsed_spec(index: int, entry: dict[str, Any]) -> QuantizationSpec:
    fields = ("layer_name", "scale", "zero_point", "method", "bits", "symmetric", "axis", "groups")
    missing = [field for field in fields if field not in entry]
    _require(not missing, f"specs[{index}]: there is no {', '.join(missing)}")
    unknown = sorted(set(entry) - set(fields))
    _require(not unknown, f"specs[{index}]: unknown {', '.join(unknown)}")
    axis = entry["axis"]
    values = dict(
        entry,
        scale=_shaped(_from_json(entry["scale"]), axis),
        zero_point=_shaped(entry["zero_point"], axis),
        axis=tuple(axis) if isinstance(axis, list) else axis,
    )
    try:
        return QuantizationSpec(**values)
    except (TypeError, ValueError) as error:
        raise _Fault(f"specs[{index}]: {error}") from None


def _from_json(scale: Any) -> Any:
    if isinstance(scale, list):
        return [_from_json(item) for item in scale]
    return math.inf if scale == "inf" else scale


def _shaped(numbers: Any, axis: Any) -> Any:
    """Return numbers with one dimension for each axis; an empty list alone does not show how many."""
    return np.zeros((0,) * len(axis), np.int64) if numbers == [] and isinstance(axis, list) else numbers
