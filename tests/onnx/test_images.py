"""Folders of images as data: which files are read, what their pixels become, their classes, and what is refused."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from insides import spec_of
from onnx import TensorProto, helper
from PIL import Image

import qatcore
import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main
from qatcore._onnx.data import Data
from qatcore.onnx import ImageFolder, ModelWarning

pytestmark = pytest.mark.any_build

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def spec(*shape, kind=TensorProto.FLOAT):
    """Return what a model with one input takes."""
    return spec_of(
        onnx_models.model(
            [helper.make_node("Identity", ["x"], ["y"])],
            [onnx_models.value("x", list(shape), kind)],
            [onnx_models.value("y", list(shape), kind)],
        )
    )


def pixels(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(path, **options)
    return array


def opened(path):
    """Return an image, read by Pillow, whose file is closed."""
    with Image.open(path) as image:
        image.load()
        return image


def photos(folder, n=10, height=11, width=14):
    """Fill a folder with colour images and return their pixels."""
    return [save(folder / f"{i:02}.png", pixels(height, width, 3, seed=i)) for i in range(n)]


def only(folder, given, **options):
    """Return the only image of a folder as a model takes it."""
    [found] = Data(ImageFolder(folder, **options) if options else folder, given)
    assert len(found["x"]) == 1 or given.whole
    return found["x"] if given.whole else found["x"][0]


def raw(folder, height, width, channels=3):
    """Return the bytes of the only image of a folder, of that very size."""
    return only(folder, spec("N", height, width, channels, kind=TensorProto.UINT8))


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# --- presets and options, against Pillow and NumPy step by step ---------------------------------------


@pytest.mark.parametrize(("height", "width"), [(100, 171), (171, 100), (256, 256), (37, 301), (225, 260)])
@pytest.mark.parametrize("options", [{}, {"preset": "imagenet"}, {"resize": "shorter"}, {"crop": 224 / 256}])
def test_imagenet_is_the_default(tmp_path, height, width, options):
    save(tmp_path / "a.png", pixels(height, width, 3))
    image = opened(tmp_path / "a.png")
    long = int(256 * max(height, width) / min(height, width))
    image = image.resize((long, 256) if width > height else (256, long), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    cropped = np.asarray(image)[top : top + 224, left : left + 224]
    expected = ((cropped / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
    same(only(tmp_path, spec("N", 3, 224, 224), **options), expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "bfloat16"])
def test_unit(tmp_path, kind):
    save(tmp_path / "a.png", pixels(30, 20, 3))
    resized = np.asarray(opened(tmp_path / "a.png").resize((9, 7), Image.Resampling.BILINEAR))
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    given = spec(1, 3, 7, 9, kind=helper.np_dtype_to_tensor_dtype(dtype))
    same(only(tmp_path, given, preset="unit"), (resized / 255).astype(dtype).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["float32", "float16", "uint8", "int32", "uint16", "int64"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_raw(tmp_path, kind, layout):
    save(tmp_path / "a.png", pixels(30, 20, 3))
    expected = np.asarray(opened(tmp_path / "a.png").resize((9, 7), Image.Resampling.BILINEAR)).astype(kind)
    shape = (3, 7, 9) if layout == "first" else (7, 9, 3)
    expected = expected.transpose(2, 0, 1) if layout == "first" else expected
    given = spec("N", *shape, kind=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    same(only(tmp_path, given, preset="raw"), expected)
    if np.dtype(kind).kind != "f":
        same(only(tmp_path, given), expected)


def test_signed_bytes_by_their_mean(tmp_path):
    array = save(tmp_path / "a.png", pixels(6, 5, 3))
    given = spec("N", 6, 5, 3, kind=TensorProto.INT8)
    same(only(tmp_path, given, mean=128), (array.astype(int) - 128).astype(np.int8))
    with pytest.raises(
        InvalidArgumentError, match=r"takes int8, which cannot hold the prepared pixels, from 0 to 255; preset 'raw'"
    ):
        Data(tmp_path, given)


@pytest.mark.parametrize("options", [{"preset": "unit"}, {"mean": 0.5}, {"scale": 1 / 255}, {"preset": "imagenet"}])
def test_bytes_are_not_scaled(tmp_path, options):
    photos(tmp_path, 1)
    with pytest.raises(InvalidArgumentError, match="takes uint8, which cannot hold the prepared pixels"):
        Data(ImageFolder(tmp_path, **options), spec("N", 3, 4, 4, kind=TensorProto.UINT8))


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"mean": 0.5, "std": 0.25}, lambda p: (p / 255 - 0.5) / 0.25),
        ({"mean": (0.1, 0.2, 0.3)}, lambda p: p / 255 - [0.1, 0.2, 0.3]),
        ({"std": [0.1, 0.2, 0.3]}, lambda p: p / 255 / [0.1, 0.2, 0.3]),
        ({"scale": 1}, lambda p: p),
        ({"scale": 1, "mean": np.array([123.0, 116, 103]), "std": 58}, lambda p: (p - [123, 116, 103]) / 58),
        ({"scale": 2 / 255, "mean": 1}, lambda p: p * (2 / 255) - 1),
        ({"preset": "raw", "std": 127.5, "mean": 127.5}, lambda p: (p - 127.5) / 127.5),
        ({"preset": "unit", "std": 0.5}, lambda p: p / 255 / 0.5),
        ({"preset": "imagenet", "std": 1}, lambda p: p / 255 - MEAN),
        ({"preset": "imagenet", "scale": 0.5}, lambda p: (p * 0.5 - MEAN) / STD),
    ],
)
def test_own_numbers(tmp_path, options, formula):
    array = save(tmp_path / "a.png", pixels(8, 8, 3))
    expected = np.asarray(formula(array.astype(np.float64)), np.float32)
    same(only(tmp_path, spec("N", 8, 8, 3), resize="exact", **options), expected)


def test_blue_first(tmp_path):
    array = save(tmp_path / "a.png", pixels(8, 8, 3))
    given = spec("N", 3, 8, 8)
    same(only(tmp_path, given, preset="raw", bgr=True), array[..., ::-1].transpose(2, 0, 1).astype(np.float32))
    # Numbers that are given are in the model's order, those of ImageNet stay with their colours.
    found = only(tmp_path, given, preset="raw", bgr=True, mean=(1, 2, 3))
    same(found, (array[..., ::-1] - [1.0, 2.0, 3.0]).transpose(2, 0, 1).astype(np.float32))
    found = only(tmp_path, given, preset="imagenet", resize="exact", bgr=True)
    same(found, ((array / 255 - MEAN) / STD)[..., ::-1].transpose(2, 0, 1).astype(np.float32))
    alpha = save(tmp_path / "a.png", pixels(8, 8, 4))
    same(only(tmp_path, spec("N", 8, 8, 4), preset="raw", bgr=True), alpha[..., [2, 1, 0, 3]].astype(np.float32))


@pytest.mark.parametrize(
    ("options", "resized", "says"),
    [
        ({}, (91, 55), "scaled to cover 55 x 91, centre crop"),
        ({"resize": "exact"}, (80, 48), "exact resize"),
        ({"resize": "exact", "crop": 0.5}, (160, 96), "exact resize to 96 x 160, centre crop"),
        ({"crop": 1.0}, (85, 48), "scaled to cover 48 x 80, centre crop"),
        ({"preset": "unit", "resize": "shorter"}, (85, 48), "scaled to cover 48 x 80, centre crop"),
        ({"preset": "raw", "crop": 0.8}, (106, 60), "scaled to cover 60 x 100, centre crop"),
    ],
)
def test_sizes_that_are_no_squares(tmp_path, options, resized, says):
    save(tmp_path / "a.png", pixels(90, 160, 3))
    if not options:  # 160 / 90 * 55 is 97, and wide enough
        resized = (97, 55)
    image = opened(tmp_path / "a.png").resize(resized, Image.Resampling.BILINEAR)
    left, top = round((resized[0] - 80) / 2), round((resized[1] - 48) / 2)
    expected = np.asarray(image)[top : top + 48, left : left + 80]
    data = Data(
        ImageFolder(
            tmp_path,
            **{"preset": "raw", **options, "mean": 0, "std": 1, "scale": 1}
            | ({"preset": "imagenet"} if not options else {}),
        ),
        spec("N", 48, 80, 3),
    )
    [found] = data
    same(found["x"][0], expected.astype(np.float32))
    assert f"48 x 80 RGB (height x width), NHWC float32: {says}" in str(data.images)


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (("N", 3, 224, 224), {}, "224 x 224 RGB, NCHW float32: shorter side to 256, centre crop, /255, ImageNet mean"
         " and std"),
        (("N", 3, 224, 224), {"bgr": True}, "224 x 224 BGR, NCHW float32: shorter side to 256, centre crop, /255, "
         "ImageNet mean and std"),
        ((8, 8, 1), {}, "8 x 8 grey, HWC float32: exact resize, /255"),
        ((4, 8, 8), {}, "8 x 8 RGBA, CHW float32: exact resize, /255"),
        (("N", 8, 8, 3), {"preset": "raw"}, "8 x 8 RGB, NHWC float32: exact resize, 0 to 255"),
        (("N", 8, 8, 3), {"preset": "unit", "mean": 0.5, "std": (0.1, 0.2, 0.3)},
         "8 x 8 RGB, NHWC float32: exact resize, /255, mean 0.5, std 0.1, 0.2, 0.3"),
        (("N", 8, 8, 3), {"scale": 1 / 128, "mean": 1}, "shorter side to 9, centre crop, x 0.0078125, mean 1"),
    ],
)  # fmt: skip
def test_what_was_assumed_is_said_in_a_line(tmp_path, given, options, says):
    photos(tmp_path, 10)
    line = str(Data(ImageFolder(tmp_path, **options), spec(*given)).images)
    assert line.startswith("10 images, ")
    assert line.endswith(says)
    assert "\n" not in line


# --- layouts and sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("batch", ["N", 2, None])
def test_layouts_and_channels(tmp_path, channels, batch):
    array = save(tmp_path / "a.png", pixels(6, 7, channels)[:, :, : channels if channels > 1 else 1].squeeze())
    save(tmp_path / "b.png", array)
    array = array.reshape(6, 7, channels).astype(np.float32)
    axes = [] if batch is None else [batch]
    for shape, expected in (((6, 7, channels), array), ((channels, 6, 7), array.transpose(2, 0, 1))):
        found = list(Data(ImageFolder(tmp_path, preset="raw"), spec(*axes, *shape)))
        assert len(found) == (2 if batch is None else 1)
        for each in found:
            same(each["x"], expected if batch is None else np.stack([expected, expected]))


def test_channels_are_first_where_both_may_be(tmp_path):
    array = save(tmp_path / "a.png", pixels(3, 3, 3)).astype(np.float32)
    same(only(tmp_path, spec("N", 3, 3, 3), preset="raw"), array.transpose(2, 0, 1))
    save(tmp_path / "a.png", pixels(4, 4, 3))
    assert only(tmp_path, spec("N", 4, 4, 3), preset="raw").shape == (4, 4, 3)
    assert only(tmp_path, spec("N", 3, 4, 4), preset="raw").shape == (3, 4, 4)


@pytest.mark.parametrize("size", [6, (6, 6), [6, 6], np.int64(6)])
def test_a_size_for_what_a_model_leaves_open(tmp_path, size):
    array = save(tmp_path / "a.png", pixels(6, 6, 3)).astype(np.float32)
    for shape in ((None, None), (6, None), (None, 6), (6, 6)):
        same(only(tmp_path, spec("N", *shape, 3), preset="raw", size=size), array)


@pytest.mark.parametrize(
    ("given", "size", "says"),
    [
        (("N", 3, None, None), None, r"size: the model takes images of more than one size, x \(\w*\[\?, 3, \?, \?\]\)"
         ".* such as 224 or 480x640"),
        (("N", 3, 48, None), None, "such as 48x640"),
        (("N", 3, None, 32), None, "such as 480x32"),
        (("N", 3, 48, None), 40, r"takes x \(float32\[\?, 3, 48, \?\]\), got height 40 and width 40"),
        (("N", 3, 48, 48), (48, 40), "got height 48 and width 40"),
    ],
)  # fmt: skip
def test_sizes_that_are_missing_or_do_not_fit(tmp_path, given, size, says):
    photos(tmp_path, 1)
    with pytest.raises(InvalidArgumentError, match=says):
        Data(ImageFolder(tmp_path, size=size), spec(*given))


@pytest.mark.parametrize(
    "given",
    [("N", 12, 8, 8), ("N", None, None, None), ("N", 3), ("N", 2, 3, 8, 8), (), ("N", 3, 8, 8, TensorProto.BOOL),
     ("N", 3, 8, 8, TensorProto.COMPLEX64), ("N", 3, 8, 8, TensorProto.STRING)],
)  # fmt: skip
def test_models_that_take_no_images(tmp_path, given):
    photos(tmp_path, 1)
    *shape, kind = given if len(given) == 5 and given[1] == 3 else (*given, TensorProto.FLOAT)
    with pytest.raises(
        InvalidArgumentError, match=r"expected a model with one input of images .*; the model takes x \("
    ):
        Data(tmp_path, spec(*shape, kind=kind))


def test_models_of_several_inputs_or_of_any_shape(tmp_path):
    photos(tmp_path, 1)
    two = onnx_models.model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [onnx_models.value("x", ["N", 3, 8, 8]), onnx_models.value("z", ["N", 3, 8, 8])],
        [onnx_models.value("y", ["N", 3, 8, 8])],
    )
    with pytest.raises(InvalidArgumentError, match=r"the model takes x \(.*\), z \(.*\); give arrays or module:func"):
        Data(tmp_path, spec_of(two))
    shapeless = spec("N", 3, 8, 8)
    shapeless.shapes["x"] = None
    with pytest.raises(InvalidArgumentError, match=r"the model takes x \(float32\)"):
        Data(tmp_path, shapeless)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "coco"}, "preset: expected one of imagenet, unit, raw, got 'coco'"),
        ({"resize": "longer"}, "resize: expected one of shorter, exact, got 'longer'"),
        ({"size": 0}, "size"),
        ({"size": 70000}, "size: expected at most 65,535 pixels, got 70,000"),
        ({"size": (1, 2, 3)}, "size: expected a number of pixels, or height and width"),
        ({"crop": 0.0}, "crop: expected a number above 0, at most 1, got 0.0"),
        ({"crop": 1.5}, "crop"),
        ({"crop": 1.0, "resize": "exact"}, "crop: nothing is cut off images of exact size"),
        ({"scale": 0.0}, "scale: expected a number above 0, got 0"),
        ({"scale": float("nan")}, "scale"),
        ({"std": (1.0, 0.0, 1.0)}, "std: expected numbers above 0, got 1, 0, 1"),
        ({"mean": ()}, "mean: expected a number, or one for each channel, got none"),
        (
            {"mean": (0.5, 0.5)},
            r"mean: expected one number, or 3 \(one for each of the model's channels\), got 2: 0.5, 0.5",
        ),
        ({"mean": float("nan")}, "mean: expected numbers from 0 to 1, .* got nan"),
        ({"mean": -0.5}, "mean: expected numbers from 0 to 1, like pixels with scale 0.00392157, got -0.5$"),
        ({"mean": 127.5}, "got 127.5; give scale 1 as well"),
        ({"preset": "raw", "mean": 300}, "mean: expected numbers from 0 to 255, .* got 300$"),
        ({"preset": "raw", "std": 1e-40}, "cannot hold the prepared pixels"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(tmp_path, options, says):
    photos(tmp_path, 1)
    with pytest.raises(InvalidArgumentError, match=says):
        Data(ImageFolder(tmp_path, **options), spec("N", 3, 8, 8))


@pytest.mark.parametrize(
    "options", [{"bgr": 1}, {"mean": "0.5"}, {"size": 2.5}, {"size": "8"}, {"crop": "half"}, {"std": [[1.0]]}]
)
def test_options_of_another_type(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        ImageFolder("photos", **options)


def test_options_that_do_not_fit_the_channels(tmp_path):
    photos(tmp_path, 1)
    with pytest.raises(InvalidArgumentError, match="bgr: the model takes grey images"):
        Data(ImageFolder(tmp_path, bgr=True), spec("N", 1, 8, 8))
    with pytest.raises(InvalidArgumentError, match=r"mean: expected one number, or 1 .* preset 'imagenet' has 3"):
        Data(ImageFolder(tmp_path, preset="imagenet"), spec("N", 1, 8, 8))
    with pytest.raises(TypeError, match="images: expected the path of a folder, got int"):
        ImageFolder(3)


def test_options_are_a_value():
    given = ImageFolder("a", mean=[1, 2, 3], size=8)
    assert given == ImageFolder("a", mean=(1.0, 2.0, 3.0), size=(8, 8))
    assert hash(given) == hash(ImageFolder("a", mean=np.array([1, 2, 3]), size=[8, 8]))
    with pytest.raises(AttributeError):
        given.mean = 0


# --- kinds of images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "tiff", "webp", "ppm", "tga", "gif", "apng", "dib"])
def test_formats_without_loss(tmp_path, ending):
    array = pixels(6, 7, 3) // 64 * 64  # with few colours, as GIF has
    array.reshape(-1, 3)[8:] = array[0, 0]
    save(tmp_path / f"a.{ending}", array, **({"lossless": True} if ending == "webp" else {}))
    same(raw(tmp_path, 6, 7), array)


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG", "jfif"])
def test_jpeg(tmp_path, ending):
    save(tmp_path / f"a.{ending}", pixels(16, 16, 3), format="JPEG")
    same(raw(tmp_path, 16, 16), np.asarray(opened(tmp_path / f"a.{ending}")))


def test_a_wrong_ending_is_no_obstacle(tmp_path):
    array = save(tmp_path / "a.jpg", pixels(6, 7, 3), format="PNG")
    same(raw(tmp_path, 6, 7), array)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_orientation_in_exif(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = TURNED[orientation](save(tmp_path / f"a.{ending}", pixels(6, 6, 3), exif=exif.tobytes()))
    same(raw(tmp_path, 6, 6), expected)


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    grey = save(tmp_path / "a.png", pixels(6, 7))
    same(raw(tmp_path, 6, 7), np.repeat(grey[..., np.newaxis], 3, axis=2))
    same(raw(tmp_path, 6, 7, 4), np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    array = save(tmp_path / "a.png", pixels(6, 7, 3)).astype(np.int64)
    # Of ITU-R BT.601, in steps of 2**-16.
    luma = (array @ [19595, 38470, 7471] + 2**15) >> 16
    same(raw(tmp_path, 6, 7, 1)[..., 0], luma.astype(np.uint8))


def test_one_bit(tmp_path):
    bits = pixels(6, 7) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").mode == "1"
    same(raw(tmp_path, 6, 7, 1)[..., 0], bits.astype(np.uint8) * np.uint8(255))


def test_palettes(tmp_path):
    codes, palette = pixels(6, 7) % 16, pixels(16, 3, seed=5)
    image = Image.fromarray(codes, "P")
    image.putpalette(palette.reshape(-1).tolist())
    image.save(tmp_path / "a.png")
    same(raw(tmp_path, 6, 7), palette[codes])
    image.save(tmp_path / "a.png", transparency=3)
    same(raw(tmp_path, 6, 7), np.where((codes == 3)[..., np.newaxis], np.uint8(255), palette[codes]))
    opaque = np.where(codes == 3, 0, 255).astype(np.uint8)
    same(raw(tmp_path, 6, 7, 4), np.dstack([palette[codes], opaque]))


def test_what_is_transparent_lies_on_white(tmp_path):
    array = save(tmp_path / "a.png", pixels(64, 64, 4))
    colours, alpha = array[..., :3].astype(np.float64), array[..., 3:] / 255
    same(raw(tmp_path, 64, 64), np.rint(colours * alpha + 255 * (1 - alpha)).astype(np.uint8))
    same(raw(tmp_path, 64, 64, 4), array)
    grey = save(tmp_path / "a.png", pixels(64, 64, 2))
    tone, alpha = grey[..., 0].astype(np.float64), grey[..., 1] / 255
    same(raw(tmp_path, 64, 64, 1)[..., 0], np.rint(tone * alpha + 255 * (1 - alpha)).astype(np.uint8))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_become_8(tmp_path, ending):
    deep = np.random.default_rng(2).integers(0, 2**16, (60, 70)).astype(np.uint16)
    deep[0, :3] = 0, 65535, 128
    save(tmp_path / f"a.{ending}", deep)
    expected = np.rint(deep / 257).astype(np.uint8)
    same(raw(tmp_path, 60, 70, 1)[..., 0], expected)
    same(raw(tmp_path, 60, 70), np.repeat(expected[..., np.newaxis], 3, axis=2))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_have_no_known_range(tmp_path, kind):
    save(tmp_path / "a.tif", pixels(6, 7).astype(kind))
    with pytest.raises(InvalidArgumentError, match=r"1 of 1 image .* cannot be read: a\.tif \(pixels of 32 bits"):
        list(Data(tmp_path, spec("N", 1, 6, 7)))


@pytest.mark.parametrize(
    ("inks", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)),
     ((0, 255, 0, 0), (255, 0, 255)), ((0, 0, 255, 0), (255, 255, 0)), ((51, 0, 0, 0), (204, 255, 255))],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_four_inks(tmp_path, inks, colour, ending):
    Image.new("CMYK", (8, 8), inks).save(tmp_path / f"a.{ending}", quality=100)
    assert opened(tmp_path / f"a.{ending}").mode == "CMYK"
    found = raw(tmp_path, 8, 8)
    assert np.abs(found.astype(int) - colour).max() <= (0 if ending == "tif" else 3)
    assert raw(tmp_path, 8, 8, 4)[..., 3].min() == 255
    assert raw(tmp_path, 8, 8, 1).shape == (8, 8, 1)


def test_the_first_of_several_frames(tmp_path):
    frames = [np.full((6, 7, 3), value, np.uint8) for value in (10, 200, 90)]
    for ending in ("gif", "tif", "png", "webp"):
        first, *others = map(Image.fromarray, frames)
        first.save(tmp_path / f"a.{ending}", save_all=True, append_images=others)
        with Image.open(tmp_path / f"a.{ending}") as image:
            assert image.n_frames == 3
        assert np.abs(raw(tmp_path, 6, 7).astype(int) - 10).max() <= 2  # what WebP loses
        (tmp_path / f"a.{ending}").unlink()


# --- files --------------------------------------------------------------------------------------------


def test_the_order_of_names_whatever_the_folders(tmp_path):
    names = ["b/2.png", "a/10.png", "a/2.png", "c.png", "a-b/1.png", "b/x/1.png"]
    for value, name in enumerate(names):
        save(tmp_path / name, np.full((4, 4, 3), value, np.uint8))
    data = Data(ImageFolder(tmp_path, preset="raw"), spec("N", 3, 4, 4))
    expected = [names.index(each) for each in ("a/10.png", "a/2.png", "a-b/1.png", "b/2.png", "b/x/1.png", "c.png")]
    for _ in range(2):
        assert [int(image[0, 0, 0]) for batch in data for image in batch["x"]] == expected


def test_what_is_passed_over(tmp_path):
    arrays = photos(tmp_path, 3)
    for name in ("README.txt", ".DS_Store", "._00.png", "notes.json", ".thumbnails/t.png", "sub/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # which nobody writes into: to open it would wait for ever
    data = Data(ImageFolder(tmp_path, preset="raw"), spec("N", 11, 14, 3))
    [found] = data
    same(found["x"], np.stack(arrays).astype(np.float32))
    assert str(data.images).startswith("3 images,")


def test_links_are_followed_but_not_in_circles(tmp_path):
    arrays = photos(tmp_path / "elsewhere", 2)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "z.png").symlink_to(tmp_path / "elsewhere" / "00.png")
    [found] = Data(ImageFolder(folder, preset="raw"), spec("N", 11, 14, 3))
    same(found["x"], np.stack([*arrays, arrays[0]]).astype(np.float32))


def damaged(folder):
    """Put files into a folder that cannot be read, and return how many."""
    (folder / "0.jpg").write_text("no image")
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").symlink_to(folder / "nowhere.png")
    whole = io.BytesIO()
    Image.fromarray(pixels(64, 64, 3)).save(whole, "JPEG")
    (folder / "a.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (folder / "c.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    return 6


@pytest.mark.parametrize("size", [1, 3, 8])
def test_what_cannot_be_read_is_named_counted_and_left_out(tmp_path, size):
    expected = np.stack(photos(tmp_path, 7)).astype(np.float32)
    n = damaged(tmp_path)
    data = Data(ImageFolder(tmp_path, preset="raw"), spec("N", 11, 14, 3), size)
    with pytest.warns(ModelWarning) as told:
        found = [batch["x"] for batch in data]
    assert [len(batch) for batch in found] == [size] * (7 // size) + ([7 % size] if 7 % size else [])
    same(np.concatenate(found), expected)
    [message] = [str(each.message) for each in told]
    assert message == (
        f"images: {n} of {7 + n} images in {tmp_path} cannot be read: 0.jpg (not an image that Pillow can read), "
        "1.png (not an image that Pillow can read), 2.png (No such file or directory) and 3 more; they are left out"
    )
    assert told[0].filename == __file__
    assert str(data.images).startswith("7 images,")
    same(np.concatenate([batch["x"] for batch in data]), expected)  # and told once
    (tmp_path / "03.png").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match=r"03\.png could be read before, but not now"):
        list(data)


def test_nothing_that_can_be_read(tmp_path):
    n = damaged(tmp_path)
    with pytest.raises(InvalidArgumentError, match=rf"{n} of {n} images in .* cannot be read: 0\.jpg .*and 3 more"):
        list(Data(tmp_path, spec("N", 3, 8, 8)))


def test_what_pillow_warns_of_is_no_fault(tmp_path):
    # A palette with a transparency for each colour, which Pillow warns of.
    image = Image.fromarray(pixels(6, 7) % 4, "P")
    image.putpalette(pixels(4, 3).reshape(-1).tolist())
    image.save(tmp_path / "a.png", transparency=bytes([0, 255, 255, 255]))
    assert raw(tmp_path, 6, 7).shape == (6, 7, 3)


def test_images_with_too_many_pixels(tmp_path, monkeypatch):
    photos(tmp_path, 2)
    save(tmp_path / "bomb.png", np.zeros((15, 15, 3), np.uint8))
    save(tmp_path / "line.png", np.zeros((1, 150, 3), np.uint8))  # which gets larger when its shorter side does
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    data = Data(ImageFolder(tmp_path, preset="unit", resize="shorter"), spec("N", 3, 4, 4))
    with pytest.warns(ModelWarning, match=r"bomb\.png \(15 x 15 pixels, more than Pillow's limit of 200\), "
                      r"line\.png \(600 x 4 pixels"):  # fmt: skip
        [found] = data
    assert len(found["x"]) == 2


def test_arrays_beside_images(tmp_path):
    photos(tmp_path, 2)
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 4, 4), np.float32))
    says = r"got a folder with both, .*: 2 images, such as 00\.png, and 1 file of arrays, such as a\.npy"
    with pytest.raises(InvalidArgumentError, match=says):
        Data(tmp_path, spec("N", 3, 4, 4))
    with pytest.raises(InvalidArgumentError, match=says):
        Data(ImageFolder(tmp_path), spec("N", 3, 4, 4))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.npy").rename(tmp_path / "sub" / "a.npy")
    with pytest.raises(InvalidArgumentError, match=f"got a folder with both, .* such as sub{os.sep}a.npy"):
        Data(tmp_path, spec("N", 3, 4, 4))


def test_a_directory_of_arrays_stays_one(tmp_path):
    expected = np.zeros((1, 3, 4, 4), np.float32)
    np.save(tmp_path / "a.npy", expected)
    photos(tmp_path / "charts", 1)
    data = Data(tmp_path, spec("N", 3, 4, 4))
    [found] = data
    same(found["x"], expected)
    assert data.images is None
    with pytest.raises(
        InvalidArgumentError, match=r"options for images need a folder of images, but .* is a directory of arrays"
    ):
        Data(ImageFolder(tmp_path), spec("N", 3, 4, 4))


def test_what_is_no_folder_of_images(tmp_path):
    save(tmp_path / "photos" / "a.png", pixels(4, 4, 3))
    with pytest.raises(InvalidArgumentError, match=r"data: there is no folder .*none$"):
        Data(ImageFolder(tmp_path / "none"), spec("N", 3, 4, 4))
    with pytest.raises(
        InvalidArgumentError, match=r"options for images need a folder of images, but .* is no directory"
    ):
        Data(ImageFolder(tmp_path / "photos" / "a.png"), spec("N", 3, 4, 4))
    with pytest.raises(InvalidArgumentError, match="give the folder of the image, or module:function"):
        Data(tmp_path / "photos" / "a.png", spec("N", 3, 4, 4))
    (tmp_path / "photos" / "a.png").unlink()
    with pytest.raises(InvalidArgumentError, match=r"no \.npz or \.npy file in .*photos, and no image; .* \.jpg, "):
        Data(tmp_path / "photos", spec("N", 3, 4, 4))


def test_without_pillow(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "photos", 1)
    onnx.save(onnx_models.convolutions(), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs Pillow: pip install 'qatcore\[onnx\]'"):
        Data(tmp_path / "photos", spec("N", 3, 4, 4))
    command = ["quantize", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "photos"), "-o", str(tmp_path / "q")]
    assert main(command) == 2
    assert capsys.readouterr().err == "qatcore: a folder of images needs Pillow: pip install 'qatcore[onnx]'\n"


# --- batches ------------------------------------------------------------------------------------------


def test_batches_of_any_size_and_threads_make_the_same(tmp_path):
    photos(tmp_path, 13, height=40, width=60)
    given, threads = spec("N", 3, 32, 32), qatcore.get_num_threads()
    results = []
    try:
        for n, size in ((1, None), (4, None), (4, 1), (4, 5), (1, 13)):
            qatcore.set_num_threads(n)
            data = Data(tmp_path, given, size)
            found = [batch["x"] for batch in data]
            assert data.total == len(found)
            assert [len(batch) for batch in found[:-1]] == [size or 8] * (len(found) - 1)
            results.append(np.concatenate(found))
    finally:
        qatcore.set_num_threads(threads)
    assert len(results[0]) == 13
    for other in results[1:]:
        same(other, results[0])


def test_batches_of_the_size_that_a_model_fixes(tmp_path):
    expected = np.stack(photos(tmp_path, 10)).astype(np.float32)
    data = Data(ImageFolder(tmp_path, preset="raw"), spec(4, 11, 14, 3))
    same(np.concatenate([batch["x"] for batch in data]), expected[:8])
    assert data.left_out == 2
    with pytest.raises(InvalidArgumentError, match="batch_size: expected 4, which the model fixes, got 3"):
        Data(tmp_path, spec(4, 11, 14, 3), 3)
    with pytest.raises(InvalidArgumentError, match=r"the model takes 12 images at a time, but there are 10$"):
        list(Data(tmp_path, spec(12, 11, 14, 3)))


def test_an_image_is_a_sample_without_an_axis_of_samples(tmp_path):
    photos(tmp_path, 3)
    given = spec(3, 11, 14)
    found = list(Data(ImageFolder(tmp_path, preset="raw"), given))
    assert [batch["x"].shape for batch in found] == [(3, 11, 14)] * 3
    assert sum(map(given.samples_of, found)) == 3
    with pytest.raises(InvalidArgumentError, match="batch_size: expected 1, which the model fixes, got 2"):
        Data(tmp_path, given, 2)


def test_images_are_read_when_they_are_needed(tmp_path):
    photos(tmp_path, 20)
    batches = iter(Data(ImageFolder(tmp_path, preset="unit"), spec("N", 3, 8, 8)))
    assert len(next(batches)["x"]) == 8
    for n in range(8, 20):
        (tmp_path / f"{n:02}.png").unlink()
    with pytest.warns(ModelWarning, match="12 of 20 images"):
        assert list(batches) == []


def test_memory_does_not_grow_with_the_images(tmp_path):
    save(tmp_path / "0.png", pixels(8, 8, 3))
    for n in range(1, 200):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{n}.png")
    data = Data(tmp_path, spec("N", 3, 224, 224))
    tracemalloc.start()
    n = sum(len(batch["x"]) for batch in data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 200
    assert peak < 40 << 20  # all of them are 120 MB


# --- classes ------------------------------------------------------------------------------------------


@pytest.fixture
def classified(tmp_path, monkeypatch):
    """A model of 5 classes, and a folder of images in folders with the names of what it answers."""
    monkeypatch.chdir(tmp_path)
    model = onnx_models.convolutions()
    onnx.save(model, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    names, n = ["ant", "bee", "cat", "dog", "eel"], dict.fromkeys(range(5), 0)
    for seed in range(400):
        array = (pixels(8, 8, 3, seed=seed) * np.linspace(0.1, 1, 3)[np.roll(range(3), seed)]).astype(np.uint8)
        x = ((array / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[np.newaxis]
        answer = int(session.run(None, {"x": x})[0].argmax())
        if n[answer] < 5:
            n[answer] += 1
            save(Path("photos", names[answer], f"{seed}.png"), array)
    for name in names:
        Path("photos", name).mkdir(exist_ok=True)
    return [name for answer, name in enumerate(names) if n[answer]]


def labels(folder, given=None):
    found = [batch.get("labels") for batch in Data(folder, given or spec("N", 3, 8, 8))]
    return None if found[0] is None else np.concatenate(found).tolist()


def test_folders_are_classes(tmp_path):
    for name, n in (("cat", 2), ("bee", 3), ("dog/black", 2), ("Zoo", 1)):
        photos(tmp_path / name, n)
    data = Data(tmp_path, spec("N", 3, 8, 8))
    [batch] = data
    assert batch["labels"].dtype == np.int64
    assert batch["labels"].tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert str(data.images).startswith("8 images of 4 classes, 8 x 8 RGB")
    photos(tmp_path, 1)  # of no class
    assert labels(tmp_path) is None
    assert str(Data(tmp_path, spec("N", 3, 8, 8)).images).startswith("9 images, 8 x 8 RGB")


def test_numbers_are_classes_themselves(tmp_path):
    for name, n in (("10", 1), ("9", 2), ("0", 1)):
        photos(tmp_path / name, n)
    assert labels(tmp_path) == [0, 10, 9, 9]
    photos(tmp_path / "other", 1)
    assert labels(tmp_path) == [0, 1, 2, 2, 3]


def test_labels_are_called_otherwise_beside_an_input_of_that_name(tmp_path):
    photos(tmp_path / "a", 1)
    model = onnx_models.model(
        [helper.make_node("Identity", ["labels"], ["y"])],
        [onnx_models.value("labels", ["N", 3, 8, 8])],
        [onnx_models.value("y", ["N", 3, 8, 8])],
    )
    [batch] = Data(tmp_path, spec_of(model))
    assert set(batch) == {"labels", "labels_1"}


def test_accuracy_on_folders(classified):
    for name in os.listdir("photos"):
        if name not in classified:
            save(Path("photos", name, "0.png"), pixels(8, 8, 3))
    photos_ = ImageFolder("photos", resize="exact", preset="imagenet")
    made = qatcore.onnx.quantize_model("model.onnx", photos_)
    result = qatcore.onnx.compare("model.onnx", made, photos_, labels="labels")
    assert result.metric == "accuracy"
    files = [path for path in Path("photos").rglob("*.png") if path.name != "0.png"]
    total = sum(1 for _ in Path("photos").rglob("*.png"))
    strangers = total - len(files)
    assert result.score[0] >= 100.0 * len(files) / total
    assert result.score[0] == 100.0 or strangers
    assert result.images.startswith(f"{total} images of 5 classes")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("label", "labels: expected 'labels', the name of the images' classes, got 'label'"),
        ("few", r"has folders of 2 classes, but the model has 5; name each folder by the number of its class"),
        ("flat", "labels: expected all images in .* to lie in subfolders with the names of their classes"),
    ],
)
def test_labels_that_cannot_be_right(tmp_path, given, says):
    model = onnx_models.convolutions()
    folders = {"label": "abcde", "few": "ab", "flat": "."}[given]
    for name in folders:
        photos(tmp_path / name, 1)
    asked = "label" if given == "label" else "labels"
    with pytest.raises(InvalidArgumentError, match=says):
        qatcore.onnx.compare(model, model, tmp_path, labels=asked)
    with pytest.raises(InvalidArgumentError, match=says):
        qatcore.onnx.quantize_model(model, tmp_path, max_drop=1.0, labels=asked)


# --- functions and commands ---------------------------------------------------------------------------


def arrays_of(folder):
    """Return what the default makes of images of exactly 8 x 8 pixels, by Pillow and NumPy."""
    result = []
    for path in sorted(Path(folder).rglob("*.png")):
        image = opened(path).resize((9, 9), Image.Resampling.BILINEAR).crop((0, 0, 8, 8))
        result.append(((np.asarray(image) / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1))
    return np.stack(result)


def run(capsys, *argv):
    assert main([str(a) for a in argv]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def fails(capsys, *argv, says):
    try:
        code = main([str(a) for a in argv])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err, err


LINE = "40 images, 8 x 8 RGB, NCHW float32: shorter side to 9, centre crop, /255, ImageNet mean and std"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_models.convolutions(), "model.onnx")
    photos(Path("photos"), 40, 8, 8)
    return tmp_path


def about(path):
    [entry] = [each for each in onnx.load(path).metadata_props if each.key == "qatcore"]
    return json.loads(entry.value)


def test_every_function_takes_a_folder_as_it_takes_arrays(folder):
    model, x = onnx.load("model.onnx"), arrays_of("photos")
    assert qatcore.onnx.calibrate(model, "photos") == qatcore.onnx.calibrate(model, x)
    made, expected = (qatcore.onnx.quantize_model(model, data) for data in (Path("photos"), x))
    onnx.save(made, "q.onnx")
    assert about("q.onnx").pop("images") == LINE
    assert made.graph == expected.graph
    kept = qatcore.onnx.quantize_model(model, "photos", max_drop=0.0)
    assert kept.graph == qatcore.onnx.quantize_model(model, x, max_drop=0.0).graph
    onnx.save(kept, "kept.onnx")
    assert about("kept.onnx")["images"] == LINE
    assert qatcore.onnx.sensitivity(model, "photos") == qatcore.onnx.sensitivity(model, x)
    found, by_arrays = (qatcore.onnx.compare(model, made, data) for data in ("photos", x))
    assert (found.score, found.outputs, found.tensors) == (by_arrays.score, by_arrays.outputs, by_arrays.tensors)
    assert (found.images, by_arrays.images) == (LINE, None)


def test_every_command_says_what_was_assumed(folder, capsys):
    line = f"images       {LINE}\n"
    assert run(capsys, "calibrate", "model.onnx", "--data", "photos", "-o", "c.npz").startswith(line)
    out = run(capsys, "quantize", "model.onnx", "--data", "photos/", "-o", "q.onnx")
    assert out.startswith(line)
    assert about("q.onnx")["images"] == LINE
    assert run(capsys, "compare", "model.onnx", "q.onnx", "--data", "photos").startswith(line)
    assert run(capsys, "inspect", "q.onnx").startswith(f"{line}\n")
    for command in (
        "calibrate model.onnx --data photos -o c2.npz",
        "quantize model.onnx --data photos -o q2.onnx",
        "compare model.onnx q.onnx --data photos",
        "inspect q.onnx",
    ):
        assert json.loads(run(capsys, *command.split(), "--json"))["images"] == LINE
    run(capsys, "quantize", "model.onnx", "--activations", "none", "-o", "w.onnx")
    assert "images" not in about("w.onnx")
    assert "images" not in run(capsys, "inspect", "w.onnx")


def test_options_of_the_command_are_those_of_the_function(folder, capsys):
    given = "--resize shorter --crop 0.8 --mean 0.1,0.2,0.3 --std 1/4 --scale 1/255 --bgr --size 8x8 --batch-size 3"
    out = run(capsys, "quantize", "model.onnx", "--data", "photos", *given.split(), "-o", "q.onnx")
    said = "40 images, 8 x 8 BGR, NCHW float32: shorter side to 10, centre crop, /255, mean 0.1, 0.2, 0.3, std 0.25"
    assert f"images       {said}\n" in out
    options = {"resize": "shorter", "crop": 0.8, "mean": (0.1, 0.2, 0.3), "std": 0.25, "scale": 1 / 255, "bgr": True}
    images = ImageFolder("photos", size=8, **options)
    assert onnx.load("q.onnx") == qatcore.onnx.quantize_model("model.onnx", images, batch_size=3)
    for preset in ("imagenet", "unit", "raw"):
        run(capsys, "quantize", "model.onnx", "--data", "photos", "--preset", preset, "-o", "q.onnx")
        assert onnx.load("q.onnx") == qatcore.onnx.quantize_model("model.onnx", ImageFolder("photos", preset=preset))
    # Alone it cuts off nothing but what is too long.
    out = run(capsys, "quantize", "model.onnx", "--data", "photos", "--crop", "--preset", "unit", "-o", "q.onnx")
    assert "shorter side to 8, centre crop, /255\n" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("quantize model.onnx --data photos --preset coco -o q.onnx", "argument --preset: invalid choice: 'coco'"),
        ("quantize model.onnx --data photos --size 8by8 -o q.onnx", "expected pixels such as 224 or 480x640"),
        (
            "quantize model.onnx --data photos --mean 0.5;1 -o q.onnx",
            "expected a number such as 0.5 or 1/255, got '0.5",
        ),
        (
            "quantize model.onnx --data photos --scale 1/0 -o q.onnx",
            "expected a number such as 0.5 or 1/255, got '1/0'",
        ),
        (
            "quantize --data photos -o q.onnx --crop model.onnx",
            "expected a part such as 0.875, or another option after --crop",
        ),
        ("quantize model.onnx --data photos --mean 127.5 -o q.onnx", "got 127.5; give scale 1 as well"),
        ("quantize model.onnx --data photos -o photos/03.png", "photos/03.png belongs to the inputs"),
        ("quantize model.onnx --data photos -o photos/new.png", "photos/new.png belongs to the inputs"),
        (
            "quantize model.onnx --data model.onnx --bgr -o q.onnx",
            "options for images need a folder of images, but model.onnx",
        ),
        ("quantize model.onnx --activations none --bgr -o q.onnx", "--bgr needs --data, but there is none"),
        ("calibrate model.onnx --data photos --crop 2 -o c.npz", "crop: expected a number above 0, at most 1"),
        (
            "compare model.onnx model.onnx --data photos --labels labels",
            "expected all images in photos to lie in subfolders",
        ),
        ("quantize rows.onnx --data photos -o q.onnx", "the model takes x (float32[?, 48])"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, capsys, arguments, says):
    onnx.save(onnx_models.product(), "rows.onnx")
    fails(capsys, *arguments.split(), says=says)
    assert not Path("q.onnx").exists()


def test_what_cannot_be_read_is_a_note(folder, capsys):
    n = damaged(Path("photos"))
    note = f"note         {n} of {40 + n} images in photos cannot be read: 0.jpg (not an image that Pillow can read)"
    for command in (
        "calibrate model.onnx --data photos -o c.npz",
        "quantize model.onnx --data photos -o q.onnx",
        "compare model.onnx q.onnx --data photos",
    ):
        out = run(capsys, *command.split())
        assert out.startswith(f"images       {LINE}\n")
        assert out.count("cannot be read") == 1
        assert note in out
        [told] = json.loads(run(capsys, *command.split(), "--json"))["notices"]
        assert told.startswith("images: ")


def test_ctrl_c_says_how_to_go_on_with_the_same_images(folder, capsys, monkeypatch):
    from qatcore._onnx import images

    read, n = images.Images._read, [0]

    def interrupted(self, files):
        n[0] += 1
        if n[0] == 3:
            raise KeyboardInterrupt
        return read(self, files)

    monkeypatch.setattr(images.Images, "_read", interrupted)
    options = ["--preset", "unit", "--mean", "0.1,0.2,0.3", "--bgr", "--size", "8", "--batch-size", "5"]
    assert main(["quantize", "model.onnx", "--data", "photos", *options, "-o", "q.onnx"]) == 130
    err = capsys.readouterr().err
    assert "the calibration of 10 samples is saved" in err
    command = err.partition("to go on, run qatcore ")[2].partition(", then")[0].split()
    run(capsys, *command)
    saved = qatcore.onnx.Calibration.load("q.onnx.calibration.npz")
    whole = ImageFolder("photos", preset="unit", mean=(0.1, 0.2, 0.3), bgr=True)
    assert saved == qatcore.onnx.calibrate("model.onnx", whole)


def test_metadata_that_others_wrote_is_no_danger(folder, capsys):
    model = onnx.load("model.onnx")
    text = json.dumps({"images": "\x1b[31m red"})
    model.metadata_props.append(onnx.StringStringEntryProto(key="qatcore", value=text))
    onnx.save(model, "other.onnx")
    assert r"images       \x1b[31m red" in run(capsys, "inspect", "other.onnx")


@pytest.mark.parametrize("command", ["quantize", "calibrate", "compare"])
def test_help_lists_every_option(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert "a folder of images" in out
    named = {field.name for field in dataclasses.fields(ImageFolder)} - {"path"}
    assert {name for name in named if f"\n  --{name}" in out} == named


def test_pillow_is_imported_with_the_first_images_only():
    program = "import sys, qatcore.onnx; assert 'PIL' not in sys.modules, sys.modules['PIL']"
    root = Path(qatcore.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
