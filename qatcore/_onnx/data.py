"""Inputs of a model: batches from files, functions and iterables, checked against the model's inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .._base.arrays import as_plain_array
from .._base.errors import InvalidArgumentError
from .._base.types import PathLike
from .._base.validation import as_count
from .graph import inputs_of, unused_name
from .images import ImageFolder, Images, is_image, mixture
from .notices import notice

Batch = dict[str, npt.NDArray[Any]]
#: Data from users: a path, the name of a function, arrays, batches, or a function that returns arrays or batches.
Source: TypeAlias = PathLike | npt.ArrayLike | Mapping[str, npt.ArrayLike] | Callable[[], object] | Iterable[object]

#: Samples in a batch, if neither the user nor the model says how many.
BATCH_SIZE = 8
#: The name of the item behind the inputs in a batch without names; further items are ``labels_1`` and so on.
LABELS = "labels"
#: Limits of a `Sample`: the most samples, unless that would leave fewer than so many batches, and the most bytes.
SAMPLES, LEAST_BATCHES, SAMPLE_BYTES = 128, 4, 2**28


class InputSpec:
    """The inputs of a model: the name, type and dimensions of each; a dimension is None if any size will do."""

    def __init__(self, model: ir.Model) -> None:
        self.whole = False  # whether a batch is one sample, without an axis of samples
        self.types: dict[str, np.dtype[Any]] = {}
        self.shapes: dict[str, tuple[int | None, ...] | None] = {}
        for value in inputs_of(model):
            name = str(value.name)
            if not isinstance(value.type, ir.TensorType):
                raise InvalidArgumentError(f"model: expected inputs that are tensors, but {name} is none")
            try:
                self.types[name] = value.type.dtype.numpy()
            except TypeError:
                raise InvalidArgumentError(f"model: the type of its input {name} is not known") from None
            self.shapes[name] = None
            if value.shape is not None:
                self.shapes[name] = tuple(n if isinstance(n, int) and n > 0 else None for n in value.shape)

    @property
    def names(self) -> list[str]:
        """The inputs, in the model's order."""
        return list(self.types)

    def __str__(self) -> str:
        return ", ".join(f"{name} ({_shown(self.types[name], self.shapes[name])})" for name in self.types)

    @property
    def batch_size(self) -> int | None:
        """The first dimension of the inputs, if the model fixes it."""
        fixed = [shape[0] for shape in self.shapes.values() if shape]
        return next((size for size in fixed if size is not None), None)

    def samples_of(self, batch: Batch) -> int:
        """Return how many samples a batch has: the first dimension of the first input, or 1 if that has none."""
        shape = batch[self.names[0]].shape
        return shape[0] if shape and not self.whole else 1

    def check(self, batch: object, where: str) -> Batch:
        """Return a batch as a dict of arrays that fit the model, with all else in it, such as labels."""
        if not isinstance(batch, Mapping):
            batch = self._named(batch, where)
        missing = [name for name in self.types if name not in batch]
        if missing:
            raise InvalidArgumentError(
                f"{where}: there is no input {missing[0]!r} in it, only {', '.join(map(repr, batch)) or 'nothing'}; "
                f"the model takes {self}"
            )
        checked = {
            str(name): as_plain_array(value, f"{where}: {name}") if name in self.types else _as_it_is(value)
            for name, value in batch.items()
        }
        for name, expected in self.types.items():
            self._check_array(name, checked[name], expected, where)
            if not checked[name].dtype.isnative:
                checked[name] = checked[name].astype(expected)
        return checked

    def _named(self, batch: object, where: str) -> dict[str, Any]:
        """Return a batch without names as a dict: the inputs by position, and the items behind them as `LABELS`."""
        if not (isinstance(batch, (list, tuple)) and _holds_arrays(batch)):
            if len(self.types) > 1:
                raise TypeError(f"{where}: expected a dict with {self}, or a tuple, got {type(batch).__name__}")
            return {self.names[0]: batch}
        first, n = batch[0], len(self.types)
        if isinstance(first, Mapping):
            named, rest = {str(name): value for name, value in first.items()}, batch[1:]
        else:
            apart = isinstance(first, (list, tuple)) and _holds_arrays(first)
            given, rest = (first, batch[1:]) if apart else (batch[:n], batch[n:])
            if len(given) != n:
                raise InvalidArgumentError(f"{where}: expected {n} arrays, {self}, got {len(given)}")
            named = dict(zip(self.types, given, strict=True))
        taken = {*named, *self.types}
        return named | {unused_name(LABELS, taken): value for value in rest}

    def _check_array(self, name: str, array: npt.NDArray[Any], expected: np.dtype[Any], where: str) -> None:
        shape = self.shapes[name]
        fits = shape is None or (
            array.ndim == len(shape) and all(d in {None, n} for d, n in zip(shape, array.shape, strict=True))
        )
        same_type = array.dtype.newbyteorder("=") == expected or (expected.kind == "O" and array.dtype.kind in "OSU")
        if not same_type or not fits:
            raise InvalidArgumentError(
                f"{where}: expected {name} to be {_shown(expected, shape)}, got {_shown(array.dtype, array.shape)}"
            )
        if not array.size:
            raise InvalidArgumentError(f"{where}: {name} is empty, of shape {array.shape}")
        if expected.kind == "f" or expected.name == "bfloat16":
            wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
            if wrong:
                raise InvalidArgumentError(
                    f"{where}: {wrong:,} of {array.size:,} values of {name} are NaN or infinite; give finite values"
                )


def _is_array(value: object) -> bool:
    """Return whether a value is an array of any package, and not a scalar."""
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def _is_samples(source: object) -> bool:
    """Return whether data is an array, or a dict of arrays, whose first axis is samples."""
    return isinstance(source, Mapping) or _is_array(source)


def _holds_arrays(values: Iterable[object]) -> bool:
    """Return whether values hold an array or a dict at any depth; otherwise they are rows of numbers."""
    return any(
        _is_array(value) or isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and _holds_arrays(value))
        for value in values
    )


def _as_it_is(value: object) -> npt.NDArray[Any]:
    """Return an item that is not an input as an array, of objects if no other type will do."""
    try:
        return as_plain_array(value, "")
    except InvalidArgumentError:  # rows of several lengths
        assert isinstance(value, (list, tuple))
        result = np.empty(len(value), object)
        result[:] = value
        return result


def _shown(dtype: Any, shape: tuple[int | None, ...] | None) -> str:
    if dtype.kind == "O":
        dtype = "string"
    return f"{dtype}" if shape is None else f"{dtype}[{', '.join('?' if d is None else str(d) for d in shape)}]"


class Sample:
    """Some batches, spread evenly over all that come: every batch, then every second, every fourth and so on.

    Attributes
    ----------
    batches : list of dict
        Copies of the inputs of at least one batch.  Batches stay whole: only the user knows where they can be cut.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.batches: list[Batch] = []
        self._spec = spec
        self._passed, self._step = 0, 1

    def add(self, batch: Batch) -> None:
        """Take the next batch, and keep it if its turn has come."""
        if self._passed % self._step == 0:
            self.batches.append({name: batch[name].copy() for name in self._spec.names})
            while len(self.batches) > 1 and self._is_too_large():
                self.batches, self._step = self.batches[::2], 2 * self._step
        self._passed += 1

    def _is_too_large(self) -> bool:
        samples = sum(map(self._spec.samples_of, self.batches))
        many = samples > SAMPLES and (len(self.batches) + 1) // 2 >= LEAST_BATCHES
        return many or sum(array.nbytes for b in self.batches for array in b.values()) > SAMPLE_BYTES


@dataclasses.dataclass(frozen=True)
class Shard:
    """A batch that may be read elsewhere: in words where it is from, and the file or the batch itself."""

    where: str
    source: Path | Batch

    def read(self) -> Any:
        """Return the batch."""
        return _loaded(self.source) if isinstance(self.source, Path) else self.source


class Data:
    """Batches that can be iterated over several times.

    Parameters
    ----------
    source : str, PathLike, ImageFolder, iterable or callable
        Whatever `data` of `qatcore.onnx.calibrate` may be.
    spec : InputSpec
    batch_size : int, optional
        Samples in a batch, if the source is images, one file, or arrays.

    Attributes
    ----------
    images : Images or None
        The images, if the data is a folder of them.

    Raises
    ------
    InvalidArgumentError
        If the source does not exist, or is empty.  If it has batches already, and a batch size is given.
    """

    def __init__(self, source: Source, spec: InputSpec, batch_size: int | None = None) -> None:
        self.spec = spec
        self.total: int | None = None  # how many batches there are, if that is known
        self.left_out = 0  # samples that do not fill a batch of the size that the model takes
        self.images: Images | None = None
        if batch_size is not None:
            batch_size = as_count(batch_size, "batch_size")
        self._files: list[Path] = []  # each a batch, if the source is a directory of them
        self._batches = self._opened(source, batch_size)
        self._sample: Sample | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self._passing(None)

    def shards(self) -> Iterator[Shard]:
        """Yield the batches in a form that other processes can read: files of a directory are not read here."""
        if self._files:
            yield from (Shard(str(file), file) for file in self._files)
            return
        for batch in self:
            yield Shard("a batch", {name: batch[name] for name in self.spec.names})

    def sampled(self) -> Iterator[Batch]:
        """Yield the batches, and keep some of them for `sample`."""
        sample = Sample(self.spec)
        yield from self._passing(sample)
        self._sample = sample

    @property
    def is_sampled(self) -> bool:
        """Whether `sampled` went through all of the data."""
        return self._sample is not None

    def sample(self, progress: Callable[[int], None] | None = None) -> list[Batch]:
        """Return the batches that `sampled` has kept; go through all of the data first if it has not."""
        if self._sample is None:
            for n, _ in enumerate(self.sampled(), start=1):
                if progress is not None:
                    progress(n)
        assert self._sample is not None
        return self._sample.batches

    def _passing(self, sample: Sample | None) -> Iterator[Batch]:
        n = 0
        for where, given in self._batches():
            batch = self.spec.check(given, where)
            if sample is not None:
                sample.add(batch)
            yield batch
            n += 1
        if not n:
            raise InvalidArgumentError("data: expected at least one batch, got none")

    def _opened(self, source: Any, batch_size: int | None) -> Callable[[], Iterable[tuple[str, Any]]]:
        if isinstance(source, ImageFolder):
            path = Path(source.path)
            if not path.is_dir() or _array_files(path):
                if not path.exists():
                    raise InvalidArgumentError(f"data: there is no folder {path}")
                what = "a directory of arrays" if path.is_dir() else "no directory"
                raise InvalidArgumentError(
                    f"data: options for images need a folder of images, but {path} is {what}; leave them out"
                )
            return self._images(source, batch_size)
        if isinstance(source, (str, os.PathLike)):
            if not os.fspath(source):
                raise InvalidArgumentError("data: expected a directory, a file or module:function, got an empty name")
            path = Path(source)
            if path.exists() or ":" not in str(source):
                return self._of_path(path, batch_size)
            source = functools.partial(_called, imported(str(source), "data"), str(source))
        if _is_samples(source):
            return self._rows(_ArrayRows(source, self.spec), batch_size)
        _refuse_batch_size(batch_size, "a function or an iterable")
        if callable(source):
            return functools.partial(self._made, source)
        if not isinstance(source, Iterable):
            raise TypeError(
                f"data: expected a path, a function, arrays, or an iterable of batches, got {type(source).__name__}"
            )
        if isinstance(source, Iterator):
            return functools.partial(_once, source, [])
        with contextlib.suppress(TypeError):  # some of PyTorch's loaders cannot tell their length
            self.total = len(source) if isinstance(source, Sized) else None
        return functools.partial(_numbered, source)

    def _made(self, make: Callable[[], Any]) -> Iterable[tuple[str, Any]]:
        """Return the batches that a function makes."""
        batches = make()
        if _is_samples(batches):
            return self._rows(_ArrayRows(batches, self.spec), None)()
        if not isinstance(batches, Iterable):
            raise TypeError(f"data: expected an iterable of batches, or arrays, got {type(batches).__name__}")
        return _numbered(batches)

    def _of_path(self, path: Path, batch_size: int | None) -> Callable[[], Iterable[tuple[str, Any]]]:
        if path.is_dir():
            if not (files := _array_files(path)):
                return self._images(ImageFolder(path), batch_size)
            _refuse_batch_size(batch_size, "a directory")
            self.total, self._files = len(files), files
            return lambda: ((str(file), _loaded(file)) for file in files)
        if path.suffix in {".npz", ".npy"} and path.is_file():
            of_file = _NpzRows if path.suffix == ".npz" else _NpyRows
            return self._rows(of_file(path, self.spec), batch_size)
        what = "neither .npz nor .npy nor a directory" if path.exists() else "no file or directory that exists"
        advice = "give the folder of the image" if path.exists() and is_image(path.name) else "give one"
        raise InvalidArgumentError(f"data: {path} is {what}; {advice}, or module:function")

    def _images(self, folder: ImageFolder, batch_size: int | None) -> Callable[[], Iterable[tuple[str, Any]]]:
        inputs = {name: (self.spec.types[name], self.spec.shapes[name]) for name in self.spec.names}
        images = self.images = Images(folder, inputs, str(self.spec))
        self.spec.whole = images.whole
        fixed = 1 if images.whole else self.spec.batch_size
        size = self._size(fixed, batch_size)
        self.total = math.ceil(len(images) / size)
        return lambda: self._made_of_images(images, size, fixed=fixed is not None)

    def _made_of_images(self, images: Images, size: int, *, fixed: bool) -> Iterator[tuple[str, Any]]:
        """Yield batches of the images that can be read, and at the end warn of the others."""
        n, known = 0, images.complete
        for where, array, classes in images.batches(size, fixed=fixed):
            yield where, {images.name: array} | ({} if classes is None else {self._labels: classes})
            n += 1 if images.whole else len(array)
        if not n:
            reasons = [f"the model takes {size} images at a time, but there are {len(images)}"] if len(images) else []
            reasons += [images.failure()] if images.unreadable else []
            raise InvalidArgumentError(f"data: {'; '.join(reasons)}")
        self.left_out = len(images) - n
        if images.unreadable and not known:
            notice(f"images: {images.failure()}; they are left out")

    @property
    def images_line(self) -> str | None:
        """A line on how images became the model's input; None if the data is no folder of images."""
        return None if self.images is None else str(self.images)

    @property
    def _labels(self) -> str:
        """The name of the images' classes in a batch."""
        return unused_name(LABELS, set(self.spec.types))

    def check_labels(self, labels: str | None, outputs: set[int]) -> None:
        """Raise `InvalidArgumentError` if the data is a folder of images that does not have these labels.

        `outputs` holds the numbers of classes that the model's outputs have, as far as the model says them.
        """
        if self.images is not None and labels is not None:
            self.images.check_labels(labels, self._labels, outputs)

    @staticmethod
    def _size(fixed: int | None, batch_size: int | None) -> int:
        """Return the number of samples in a batch."""
        if fixed is not None and batch_size not in {None, fixed}:
            raise InvalidArgumentError(f"batch_size: expected {fixed}, which the model fixes, got {batch_size}")
        return fixed or batch_size or BATCH_SIZE

    def _rows(self, rows: _Rows, batch_size: int | None) -> Callable[[], Iterable[tuple[str, Any]]]:
        fixed = self.spec.batch_size
        size = self._size(fixed, batch_size)
        n: int = rows.samples
        whole = n - n % size if self.spec.batch_size else n  # a model that takes 4 cannot take the last 3
        if not whole:
            raise InvalidArgumentError(
                f"data: {rows.path} has {n} samples" + (f", but the model takes {fixed} at a time" if fixed else "")
            )
        self.total, self.left_out = math.ceil(whole / size), n - whole
        return functools.partial(rows.batches, size, whole)


def _array_files(path: Path) -> list[Path]:
    """Return the files of arrays in a directory, without hidden files, which some systems put beside them."""
    shown = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    arrays = sorted(entry for entry in shown if entry.suffix in {".npz", ".npy"} and entry.is_file())
    images = [entry.name for entry in shown if is_image(entry.name)]
    if arrays and images:
        raise mixture(str(path), images, [entry.name for entry in arrays])
    return arrays


def _refuse_batch_size(batch_size: int | None, source: str) -> None:
    if batch_size is not None:
        raise InvalidArgumentError(
            f"batch_size: expected images, one file or arrays of samples as data, got {source}, "
            "which has batches already; leave out the batch size"
        )


def _numbered(batches: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for index, batch in enumerate(batches):
        yield f"batch {index}", batch


def _called(function: Callable[[], Any], name: str) -> Any:
    """Return the result of a function that the user named; report its exceptions in one line."""

    def told() -> Iterator[Any]:
        with _said(name):
            yield from given

    with _said(name):
        given = function()
    return given if _is_samples(given) or not isinstance(given, Iterable) else told()


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise InvalidArgumentError(f"data: {name} raised {type(error).__name__}: {error}") from error


def _once(iterator: Iterator[Any], used: list[bool]) -> Iterator[tuple[str, Any]]:
    if used:
        raise InvalidArgumentError(
            "data: expected batches that can be read again, got an iterator; pass a function that returns it"
        )
    used.append(True)
    return _numbered(iterator)


def imported(function: str, what: str) -> Callable[..., Any]:
    """Return the function ``module:function``; the module may be in the working directory."""
    module, _, name = function.rpartition(":")
    if not module or not name:
        raise InvalidArgumentError(f"{what}: expected module:function, got {function!r}")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever importing the user's module raises
        raise InvalidArgumentError(f"{what}: there is no function {function}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise InvalidArgumentError(f"{what}: expected {function} to be a function, got {type(found).__name__}")
    result: Callable[..., Any] = found
    return result


def _loaded(path: Path) -> Any:
    try:
        if path.suffix == ".npz":
            # NumPy does not close a damaged file, so open and close it here.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as opened:
                return dict(opened)
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        # NumPy advises unpickling files that it does not know: do not pass that on.
        reason = "" if "pickle" in str(error) else f": {error}"
        raise InvalidArgumentError(f"{path}: not a {path.suffix} file, or a damaged one{reason}") from error


class _NpyRows:
    """The rows of one array in a file, read when they are needed."""

    def __init__(self, path: Path, spec: InputSpec) -> None:
        self.path = path
        if len(spec.names) > 1:
            raise InvalidArgumentError(f"data: expected a .npz file with {spec}, got {path}")
        try:
            self._array = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError) as error:
            raise InvalidArgumentError(f"{path}: not a .npy file, or a damaged one: {error}") from error
        if not self._array.ndim:
            raise InvalidArgumentError(f"{path}: expected a leading axis of samples, got a scalar")
        self.samples = len(self._array)

    def batches(self, size: int, stop: int) -> Iterator[tuple[str, Any]]:
        for start in range(0, stop, size):
            yield f"{self.path}, samples {start} on", np.array(self._array[start : min(start + size, stop)])


class _ArrayRows:
    """The rows of arrays in memory."""

    def __init__(self, source: Any, spec: InputSpec) -> None:
        self.path = "the given data"
        if not isinstance(source, Mapping):
            if len(spec.names) > 1:
                raise InvalidArgumentError(f"data: expected a dict with {spec}, got one array")
            source = {spec.names[0]: source}
        self._arrays = {str(name): as_plain_array(value, f"data: {name}") for name, value in source.items()}
        self.samples = _samples({name: array.shape for name, array in self._arrays.items()}, spec, self.path)

    def batches(self, size: int, stop: int) -> Iterator[tuple[str, Any]]:
        for start in range(0, stop, size):
            rows = slice(start, min(start + size, stop))
            yield f"samples {start} on", {name: array[rows] for name, array in self._arrays.items()}


def _samples(shapes: dict[str, tuple[int, ...]], spec: InputSpec, where: str) -> int:
    """Return the number of samples; raise if an input is missing, or arrays have different numbers."""
    missing = [name for name in spec.names if name not in shapes]
    if missing:
        raise InvalidArgumentError(
            f"data: {where} has no input {missing[0]!r} in it, only {', '.join(map(repr, shapes)) or 'nothing'}; "
            f"the model takes {spec}"
        )
    counts = [shape[0] if shape else None for shape in shapes.values()]
    if len(set(counts)) > 1 or counts[0] is None:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InvalidArgumentError(f"data: expected equally many samples of each array in {where}, got shapes {listed}")
    return counts[0]


class _NpzRows:
    """The rows of the arrays in a ``.npz`` file, unpacked when needed: the file may be larger than memory."""

    def __init__(self, path: Path, spec: InputSpec) -> None:
        self.path = path
        shapes = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if not member.endswith(".npy"):
                        raise InvalidArgumentError(f"{path}: expected only .npy files in it, got {member}")
                    with archive.open(member) as file:
                        shapes[member.removesuffix(".npy")] = _npy_header(file)[0]
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidArgumentError(f"{path}: not a .npz file, or a damaged one: {error}") from error
        if not shapes:
            raise InvalidArgumentError(f"data: there is no array in {path}")
        self.samples = _samples(shapes, spec, str(path))
        self._names = list(shapes)

    def batches(self, size: int, stop: int) -> Iterator[tuple[str, Any]]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                readers = {name: _rows(archive, f"{name}.npy", size, stop) for name in self._names}
                for start in range(0, stop, size):
                    yield f"{self.path}, samples {start} on", {name: next(rows) for name, rows in readers.items()}
        except (EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise InvalidArgumentError(f"{self.path}: damaged: {error}") from error


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save strings as arrays of strings")
    return shape, fortran, dtype


def _rows(archive: zipfile.ZipFile, member: str, size: int, stop: int) -> Iterator[npt.NDArray[Any]]:
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)
        if fortran and len(shape) > 1:  # the values of a row are not side by side
            data = np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T
            yield from (np.ascontiguousarray(data[start : min(start + size, stop)]) for start in range(0, stop, size))
            return
        row = math.prod(shape[1:])
        for start in range(0, stop, size):
            n = min(size, stop - start)
            content = file.read(n * row * dtype.itemsize)
            if len(content) < n * row * dtype.itemsize:
                raise EOFError(f"{member} ends too early")
            yield np.frombuffer(content, dtype).reshape(n, *shape[1:])


_Rows = _NpzRows | _NpyRows | _ArrayRows
