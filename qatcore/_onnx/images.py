"""A folder of images as the input of a model: its files, their classes, and how pixels become numbers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._base.errors import InvalidArgumentError
from .._base.threads import for_each
from .._base.types import PathLike
from .._base.validation import as_count, as_flag, as_number, as_share
from .display import counted

if TYPE_CHECKING:
    from PIL import Image

#: The file endings of images.  Those of HEIC are here so that a photo from a phone is reported, not skipped.
ENDINGS = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
#: The formats that Pillow may read, whatever a file's ending.  Its other formats start programs, or have no pixels.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_ARRAYS = (".npz", ".npy")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The largest side in pixels, as in JPEG.
_MOST_PIXELS = 65535
#: A message names at most this many unreadable images, and cuts each reason to this many characters.
_NAMED, _REASON = 3, 80
#: The name of a folder with more digits than this is not the number of a class.
_MOST_DIGITS = 9


@dataclass(frozen=True)
class _Preset:
    resize: str
    crop: float
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


PRESETS = {
    "imagenet": _Preset("shorter", 0.875, 1 / 255, *_IMAGENET),
    "unit": _Preset("exact", 1.0, 1 / 255, (0.0,), (1.0,)),
    "raw": _Preset("exact", 1.0, 1.0, (0.0,), (1.0,)),
}
RESIZES = ("shorter", "exact")


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and how they become the input of a model; every function takes it as data.

    The model says what its images look like: their size, layout (NCHW or NHWC), channels (1, 3 or 4) and type.
    Such a model has one input, with four dimensions, or with three if it takes no batches.
    The options say the rest.  A model may need other options than the defaults: ask those who trained it.

    A pixel from 0 to 255 becomes ``(pixel * scale - mean) / std``, computed in float64 and rounded once.
    Grey images become RGB, and colours become grey, as the model needs.
    Palettes are looked up, and 16 bits become 8.  Transparent images lie on white, unless the model takes 4 channels.
    EXIF orientation is applied; colour profiles are not.  Of several frames, the first is used.

    Subfolders are searched too.  Images are taken in the order of their names, and read when they are needed.
    If all images lie in subfolders, the class of an image is the name of the topmost one.
    If all names are numbers, they are the numbers of the classes.  Otherwise classes are numbered from 0, in the order
    of their names.  Each batch holds the numbers as "labels".

    Parameters
    ----------
    path : str or PathLike
    preset : str, optional
        "imagenet": the shorter side becomes 256/224 of the model's, and the centre is kept.  The scale is 1/255, with
        the mean and standard deviation of ImageNet.  "unit": exact size, numbers from 0 to 1.  "raw": exact size,
        numbers from 0 to 255.  By default "raw" for integer inputs, "imagenet" for float inputs with three channels,
        and "unit" for other float inputs.
    size : int or tuple of int, optional
        Height and width in pixels, or one number for both.  Needed if the model leaves them open.
    resize : str, optional
        "exact": stretch to the size.  "shorter": keep the ratio of the sides, and cut off what is too long, equally at
        both ends.  Both use Pillow's bilinear filter.  By default as in the preset.
    crop : float, optional
        The part of height and width to keep around the centre, above 0, at most 1.  With 0.875, images for a size of
        224 are resized to 256 first.  Without `resize` it implies "shorter".  By default as in the preset.
    mean, std : float or sequence of float, optional
        One number, or one for each channel, in the order of the model's channels.  The mean is subtracted from scaled
        pixels; a std is above 0.  By default those of the preset.  Without a preset, if `mean`, `std` or `scale` is
        given, the others default to 0, 1 and the scale below.
    scale : float, optional
        The factor that pixels are multiplied by first, above 0.  By default that of the preset; without a preset
        1/255, or 1 for integer inputs.
    bgr : bool
        Whether the model's channels have the order blue, green, red.

    Raises
    ------
    InvalidArgumentError
        If an option has a value other than those above.
    TypeError
        If an option is of another type.

    Examples
    --------
    >>> from qatcore.onnx import ImageFolder
    >>> photos = ImageFolder("photos/", preset="unit", size=224)
    >>> photos.size
    (224, 224)

    ``quantize_model(model, photos)`` then quantises a model on these images.
    """

    path: PathLike
    _: KW_ONLY
    preset: str | None = None
    size: int | tuple[int, int] | None = None
    resize: str | None = None
    crop: float | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    scale: float | None = None
    bgr: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise TypeError(f"images: expected the path of a folder, got {type(self.path).__name__}")
        for name, known in (("preset", tuple(PRESETS)), ("resize", RESIZES)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise InvalidArgumentError(f"{name}: expected one of {', '.join(known)}, got {given!r}")
        checked = {
            "size": None if self.size is None else _as_size(self.size),
            "crop": None if self.crop is None else as_share(self.crop, "crop"),
            "mean": None if self.mean is None else _as_numbers(self.mean, "mean"),
            "std": None if self.std is None else _as_numbers(self.std, "std"),
            "scale": None if self.scale is None else as_number(self.scale, "scale"),
            "bgr": as_flag(self.bgr, "bgr"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.crop == 1.0 and self.resize == "exact":
            raise InvalidArgumentError(
                "crop: nothing is cut off images of exact size; choose resize 'shorter', or a part below 1"
            )
        if self.scale is not None and not 0.0 < self.scale < np.inf:
            raise InvalidArgumentError(f"scale: expected a number above 0, got {self.scale:g}")
        if isinstance(self.std, tuple) and not all(0.0 < value < np.inf for value in self.std):
            raise InvalidArgumentError(f"std: expected numbers above 0, got {_listed(self.std)}")


def _as_size(size: Any) -> tuple[int, int]:
    """Return a height and a width."""
    sides = (size, size) if not isinstance(size, (tuple, list)) else tuple(size)
    if len(sides) != 2:
        raise InvalidArgumentError(f"size: expected a number of pixels, or height and width, got {size!r}")
    height, width = (as_count(side, "size") for side in sides)
    if max(height, width) > _MOST_PIXELS:
        raise InvalidArgumentError(f"size: expected at most {_MOST_PIXELS:,} pixels, got {max(height, width):,}")
    return height, width


def _as_numbers(values: Any, name: str) -> tuple[float, ...]:
    """Return one number, or one for each channel."""
    several = isinstance(values, (tuple, list)) or (isinstance(values, np.ndarray) and values.ndim == 1)
    given = tuple(values) if several else (values,)
    if not given:
        raise InvalidArgumentError(f"{name}: expected a number, or one for each channel, got none")
    return tuple(as_number(value, name) for value in given)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


class Images:
    """The images of a folder, as arrays for a model.

    Parameters
    ----------
    folder : ImageFolder
    inputs : dict of str to tuple
        The type and the dimensions of each input of the model.  The dimensions are None if the model does not say how
        many there are.  A dimension is None if any size will do.
    taken : str
        The same in words, for messages.

    Raises
    ------
    InvalidArgumentError
        If the model takes no images, or leaves open what they are.  If an option does not fit the model, or there is no
        image.
    OSError
        If a folder cannot be read.
    """

    def __init__(
        self,
        folder: ImageFolder,
        inputs: dict[str, tuple[np.dtype[Any], tuple[int | None, ...] | None]],
        taken: str,
    ) -> None:
        self.folder = os.path.normpath(folder.path)
        self._files, self._classes = _found(self.folder)
        self._all = len(self._files)
        self._pillow = _pillow()
        [(self.name, (dtype, shape))] = inputs.items() if len(inputs) == 1 else [("", (np.dtype(bool), None))]
        if len(inputs) != 1 or shape is None or not _is_number(dtype):
            raise _no_images(taken)
        self.whole = len(shape) == 3  # a batch is a single image
        self._layout, self._channels, given = _layout(shape, taken)
        self._size = _size(folder.size, given, taken)
        self._steps = _Steps(folder, dtype, self._channels, self._size)
        #: The files that could not be read so far, and why.
        self.unreadable: dict[str, str] = {}
        self.complete = False  # whether all files were tried

    def __len__(self) -> int:
        return self._all - len(self.unreadable)

    def __str__(self) -> str:
        """Return in a line what was assumed of the images."""
        height, width = self._size
        note = "" if height == width else " (height x width)"
        many = f" of {counted(len(self._classes), 'class')}" if len(self._classes) > 1 else ""
        return (
            f"{counted(len(self), 'image')}{many}, {height} x {width} {self._steps.order}{note}, "
            f"{self._layout} {self._steps.dtype}: {self._steps}"
        )

    def check_labels(self, labels: str, name: str, outputs: set[int]) -> None:
        """Raise `InvalidArgumentError` if the images have no such labels, or not the model's number of classes.

        Parameters
        ----------
        labels : str
            The name that is asked for.
        name : str
            The name that they have.
        outputs : set of int
            The numbers of classes that the model's outputs have.
        """
        if not self._classes:
            raise InvalidArgumentError(
                f"labels: expected all images in {self.folder} to lie in subfolders with the names of their classes, "
                "but some do not"
            )
        if labels != name:
            raise InvalidArgumentError(f"labels: expected {name!r}, the name of the images' classes, got {labels!r}")
        n = len(self._classes)
        if outputs and n not in outputs and not _are_numbers(self._classes):
            raise InvalidArgumentError(
                f"labels: {self.folder} has folders of {counted(n, 'class')}, but the model has {max(outputs)}; "
                "name each folder by the number of its class, from 0 on"
            )

    def batches(
        self, size: int, *, fixed: bool
    ) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[np.int64] | None]]:
        """Yield for each batch where it begins, its images, and the numbers of their classes, if they have any.

        A batch has `size` readable images, and the last one has the rest.  If the size is fixed, a rest is left out.
        """
        waiting = list(reversed(self._files))
        while waiting:
            images, files = list[npt.NDArray[Any]](), list[str]()
            while waiting and len(images) < size:
                tried = [waiting.pop() for _ in range(min(size - len(images), len(waiting)))]
                for file, result in zip(tried, self._read(tried), strict=True):
                    if isinstance(result, str):
                        self._missed(file, result)
                    else:
                        images.append(result)
                        files.append(file)
            if images and (len(images) == size or not fixed):
                yield os.path.join(self.folder, files[0]), self._stacked(images), self._numbers(files)
        self._files = [file for file in self._files if file not in self.unreadable]
        self.complete = True

    def _missed(self, file: str, reason: str) -> None:
        """Note that an image cannot be read; raise if it could be read in an earlier pass."""
        if self.complete:
            raise InvalidArgumentError(
                f"data: {os.path.join(self.folder, file)} could be read before, but not now: {reason}"
            )
        self.unreadable[file] = reason

    def failure(self) -> str:
        """Return how many images cannot be read, and which."""
        named = [f"{file} ({reason})" for file, reason in sorted(self.unreadable.items())[:_NAMED]]
        more = len(self.unreadable) - len(named)
        return (
            f"{len(self.unreadable):,} of {counted(self._all, 'image')} in {self.folder} cannot be read: "
            + ", ".join(named)
            + (f" and {more:,} more" if more else "")
        )

    def _read(self, files: list[str]) -> list[npt.NDArray[Any] | str]:
        """Return for each image an array in the model's layout, or the reason why it cannot be read."""
        results: list[npt.NDArray[Any] | str] = [""] * len(files)

        def read(index: int) -> None:
            path = os.path.join(self.folder, files[index])
            try:
                results[index] = self._steps.numbers(self._pixels(path), self._layout)
            except MemoryError:
                raise
            except Exception as error:  # on a damaged file Pillow may raise anything
                results[index] = _reason(error)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of faults in files that it can read
            for_each(range(len(files)), read)
        return results

    def _pixels(self, path: str) -> npt.NDArray[np.uint8]:
        """Return an image as an array of bytes: height, width and channels."""
        pillow, ops = self._pillow
        with open(path, "rb") as file, pillow.open(file, formats=_known(pillow)) as image:
            _refuse_bomb(pillow, image.size)
            ops.exif_transpose(image, in_place=True)
            resized = self._steps.resized(pillow, _converted(pillow, image, _MODES[self._channels]))
            return np.asarray(resized).reshape(*self._size, self._channels)

    def _stacked(self, images: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return images[0] if self.whole else np.stack(images)

    def _numbers(self, files: list[str]) -> npt.NDArray[np.int64] | None:
        if not self._classes:
            return None
        return np.array([self._classes[file.split(os.sep)[0]] for file in files], np.int64)


class _Steps:
    """The steps for each image: resize it, crop it, and turn its bytes into numbers."""

    def __init__(self, folder: ImageFolder, dtype: np.dtype[Any], channels: int, size: tuple[int, int]) -> None:
        self.dtype, self._size, self._channels = dtype, size, channels
        if folder.bgr and channels == 1:
            raise InvalidArgumentError("bgr: the model takes grey images, which have no colours to order; leave it out")
        self._places = [2, 1, 0, 3][:channels] if folder.bgr else list(range(channels))
        self.order = "".join(_MODES[max(channels, 3)][place] for place in self._places) if channels > 1 else "grey"
        integers = dtype.kind in "iu"
        chosen = folder.preset or ("raw" if integers else "imagenet" if channels == 3 else "unit")
        preset = PRESETS[chosen]
        self._resize = folder.resize or ("shorter" if folder.crop is not None else preset.resize)
        kept = preset.crop if self._resize == preset.resize else 1.0
        self._crop = kept if folder.crop is None else folder.crop
        if folder.preset is None and not (folder.mean is folder.std is folder.scale is None):
            preset = PRESETS["raw" if integers else "unit"]  # do not mix given numbers with ImageNet's
        self._scale = preset.scale if folder.scale is None else folder.scale
        self._mean = self._each(folder.mean, preset.mean, "mean", chosen)
        self._std = self._each(folder.std, preset.std, "std", chosen)
        self._table = self._numbers_of_bytes()

    def _each(self, given: Any, preset: tuple[float, ...], name: str, chosen: str) -> tuple[float, ...]:
        """Return a number for each of the model's channels."""
        values = preset if given is None else given
        if len(values) == 1:
            return values * self._channels
        if len(values) != self._channels:
            what = f"preset {chosen!r} has {len(values)}" if given is None else f"got {len(values)}: {_listed(values)}"
            raise InvalidArgumentError(
                f"{name}: expected one number, or {self._channels} (one for each of the model's channels), {what}"
            )
        return values if given is not None else tuple(values[place] for place in self._places)

    def _numbers_of_bytes(self) -> npt.NDArray[Any]:
        """Return for each channel the numbers that the 256 bytes become."""
        highest = 255 * self._scale
        wrong = [mean for mean in self._mean if not 0.0 <= mean <= highest]
        if wrong:
            raise InvalidArgumentError(
                f"mean: expected numbers from 0 to {highest:g}, like pixels with scale {self._scale:g}, "
                f"got {_listed(wrong[:1])}" + ("; give scale 1 as well" if 0.0 < wrong[0] <= 255.0 else "")
            )
        mean, std = (np.array(each)[:, np.newaxis] for each in (self._mean, self._std))
        scaled = np.arange(256.0)
        if self._scale == 1 / 255:  # no float is exactly 1/255; dividing rounds only once
            scaled /= 255
        else:
            scaled *= self._scale
        exact = (scaled - mean) / std
        with np.errstate(over="ignore", invalid="ignore"):
            table: npt.NDArray[Any] = exact.astype(self.dtype)
            back = table.astype(np.float64)
        if not np.isfinite(back).all() or (self.dtype.kind in "iu" and not np.array_equal(back, exact)):
            raise InvalidArgumentError(
                f"images: the model takes {self.dtype}, which cannot hold the prepared pixels, "
                f"from {exact.min():g} to {exact.max():g}"
                + ("; preset 'raw' gives bytes" if self.dtype.kind in "iu" else "")
            )
        return table

    def _before_crop(self) -> tuple[int, int]:
        height, width = (max(round(side / self._crop), side) for side in self._size)
        return height, width

    def resized(self, pillow: Any, image: Image.Image) -> Image.Image:
        """Return an image in the size that the model takes."""
        height, width = self._before_crop()
        if self._resize == "shorter":
            across, down = image.size
            # Round as torchvision does: the shorter side is exact, the longer one is rounded down.
            if height * across >= width * down:
                width = max(width, height * across // down)
            else:
                height = max(height, width * down // across)
        _refuse_bomb(pillow, (width, height))
        image = image.resize((width, height), pillow.Resampling.BILINEAR)
        # This too as torchvision does: half a pixel is rounded to even.
        top, left = (round((now - then) / 2) for now, then in zip((height, width), self._size, strict=True))
        return image.crop((left, top, left + self._size[1], top + self._size[0]))

    def numbers(self, pixels: npt.NDArray[np.uint8], layout: str) -> npt.NDArray[Any]:
        """Return the numbers for an image's bytes (height, width, channels), in the model's layout."""
        planes = [table[pixels[..., place]] for table, place in zip(self._table, self._places, strict=True)]
        return np.stack(planes, axis=-1 if layout.endswith("C") else 0)

    def __str__(self) -> str:
        height, width = self._before_crop()
        if self._resize == "exact":
            steps = ["exact resize" if self._crop == 1.0 else f"exact resize to {height} x {width}, centre crop"]
        elif height == width:
            steps = [f"shorter side to {height}, centre crop"]
        else:
            steps = [f"scaled to cover {height} x {width}, centre crop"]
        imagenet = tuple(tuple(each[place] for place in self._places) for each in _IMAGENET if self._channels == 3)
        if self._scale == 1 / 255:
            steps.append("/255")
        elif self._scale != 1.0:
            steps.append(f"x {self._scale:g}")
        if (self._mean, self._std) == imagenet:
            steps.append("ImageNet mean and std")
        else:
            steps += [
                f"{name} {_listed(values if len(set(values)) > 1 else values[:1])}"
                for name, values, none in (("mean", self._mean, 0.0), ("std", self._std, 1.0))
                if set(values) != {none}
            ]
        return ", ".join(steps if len(steps) > 1 else [*steps, "0 to 255"])


# --- what a model takes -------------------------------------------------------------------------------


def _no_images(taken: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "data: for a folder of images, expected a model with one input of images (1, 3 or 4 channels, first or last); "
        f"the model takes {taken}; give arrays or module:function"
    )


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fiu" or dtype.name == "bfloat16"


def _layout(shape: tuple[int | None, ...], taken: str) -> tuple[str, int, tuple[int | None, int | None]]:
    """Return the layout of a shape, its number of channels, and its height and width.

    If both the first and the last dimension may be channels, the first is taken, as in ONNX's own operators.  The
    exception is an image that is square only if the last one is.
    """
    if len(shape) not in {3, 4}:
        raise _no_images(taken)
    batch, image = ("N", shape[1:]) if len(shape) == 4 else ("", shape)
    first, middle, last = image
    found = [
        (f"{batch}{layout}", channels, size)
        for layout, channels, size in (("CHW", first, (middle, last)), ("HWC", last, (first, middle)))
        if channels in _MODES
    ]
    if not found:
        raise _no_images(taken)
    squares = [each for each in found if each[2][0] == each[2][1]]
    layout, n, size = (squares or found)[0]
    assert n is not None
    return layout, n, size


def _size(given: int | tuple[int, int] | None, taken: tuple[int | None, int | None], shown: str) -> tuple[int, int]:
    """Return the height and width that a model takes, or the given ones if it leaves them open."""
    height, width = taken
    if given is None:
        if height is None or width is None:
            example = f"{height or 480}x{width or 640}" if height or width else "224 or 480x640"
            raise InvalidArgumentError(
                f"size: the model takes images of more than one size, {shown}; give height and width as size (--size), "
                f"such as {example}"
            )
        return height, width
    assert isinstance(given, tuple)
    if height not in {None, given[0]} or width not in {None, given[1]}:
        raise InvalidArgumentError(f"size: the model takes {shown}, got height {given[0]} and width {given[1]}")
    return given


# --- files --------------------------------------------------------------------------------------------


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image, and not hidden."""
    return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith(".")


def image_files(folder: str) -> list[str]:
    """Return the images in a folder and its subfolders, by their paths inside it, in the order of their names.

    Links are followed, but not back into a folder that they lie in.  Hidden files and folders are skipped, and so are
    files with other endings.

    Raises
    ------
    InvalidArgumentError
        If there are arrays beside images.
    OSError
        If a folder cannot be read.
    """
    images, arrays = list[str](), list[str]()
    _collect(folder, "", frozenset(), images, arrays)
    if images and arrays:
        raise mixture(folder, images, arrays)
    return sorted(images, key=lambda path: path.split(os.sep))


def mixture(folder: str, images: Sequence[str], arrays: Sequence[str]) -> InvalidArgumentError:
    """Return the error for a folder with both images and arrays."""
    return InvalidArgumentError(
        f"data: expected images or arrays, got a folder with both, {folder}: {counted(len(images), 'image')}, such as "
        f"{min(images)}, and {counted(len(arrays), 'file')} of arrays, such as {min(arrays)}"
    )


def _collect(folder: str, below: str, above: frozenset[tuple[int, int]], images: list[str], arrays: list[str]) -> None:
    """Add the images and arrays in a folder; `above` are the folders that it lies in."""
    about = os.stat(folder)
    here = about.st_dev, about.st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _collect(entry.path, path, above | {here}, images, arrays)
            # A broken link counts as an image that cannot be read.
            elif is_image(entry.name) and (entry.is_file() or not os.path.exists(entry.path)):
                images.append(path)
            elif entry.name.endswith(_ARRAYS) and entry.is_file():
                arrays.append(path)


def _found(folder: str) -> tuple[list[str], dict[str, int]]:
    """Return the images in a folder, and the numbers of classes by the names of their folders."""
    files = image_files(folder)
    if not files:
        raise InvalidArgumentError(
            f"data: there is no .npz or .npy file in {folder}, and no image; images end with "
            + ", ".join(sorted(ENDINGS))
        )
    if not all(os.sep in file for file in files):
        return files, {}
    names = sorted({file.split(os.sep)[0] for file in files})
    return files, {name: int(name) if _are_numbers(names) else number for number, name in enumerate(names)}


def _are_numbers(names: Any) -> bool:
    """Return whether all names of classes are numbers."""
    return all(name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS for name in names)


# --- Pillow -------------------------------------------------------------------------------------------


def _pillow() -> tuple[Any, Any]:
    """Return Pillow's modules `Image` and `ImageOps`."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "PIL":
            raise
        raise ModuleNotFoundError("a folder of images needs Pillow: pip install 'qatcore[onnx]'", name="PIL") from error
    Image.init()
    return Image, ImageOps


def _known(pillow: Any) -> list[str]:
    """Return the image formats that the installed Pillow can read."""
    return [name for name in _FORMATS if name in pillow.OPEN]


def _refuse_bomb(pillow: Any, size: tuple[int, int]) -> None:
    """Raise `ValueError` if an image has more pixels than Pillow's limit, where Pillow may only warn."""
    pixels, most = size[0] * size[1], pillow.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise ValueError(f"{size[0]:,} x {size[1]:,} pixels, more than Pillow's limit of {most:,}")


def _converted(pillow: Any, image: Image.Image, mode: str) -> Image.Image:
    """Return an image of any kind as grey, RGB or RGBA in 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):  # older Pillows
        deep = np.asarray(image).astype(np.int64)
        image = pillow.fromarray(((deep + 128) // 257).astype(np.uint8))  # 65535 / 255 is 257
    if image.mode in {"I", "F"}:
        raise ValueError("pixels of 32 bits, without a known range")
    if image.mode == "La":
        image = image.convert("LA")
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    elif image.mode in {"CMYK", "YCbCr", "HSV", "LAB"}:
        image = image.convert("RGB")
    return image.convert(mode)


def _reason(error: Exception) -> str:
    """Return in a few words why an image cannot be read."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image that Pillow can read"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= _REASON else f"{text[:_REASON]}…"
