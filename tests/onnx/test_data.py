"""Inputs of models: where they come from, and what is refused."""

import sys

import numpy as np
import onnx_models
import pytest
from insides import spec_of
from onnx import TensorProto, helper

from qatcore import InvalidArgumentError
from qatcore._onnx.data import Data

pytestmark = pytest.mark.any_build


def two_inputs():
    return onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "z"], ["y"])],
        [onnx_models.value("x", ["N", 4]), onnx_models.value("z", ["N", 1])],
        [onnx_models.value("y", ["N", 3])],
        [onnx_models.tensor("w", onnx_models.normal(4, 3))],
    )


SPEC = spec_of(two_inputs())
ONE = spec_of(onnx_models.product(k=4, n=3))


def batch(n=2, start=0):
    x = np.arange(start, start + n * 4, dtype=np.float32).reshape(n, 4)
    return {"x": x, "z": np.ones((n, 1), np.float32)}


def same(found, expected):
    found = list(found)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name, array in b.items():
            np.testing.assert_array_equal(a[name], array)
            assert a[name].dtype == array.dtype


def test_a_directory_of_files_in_the_order_of_names(tmp_path):
    for index in (2, 0, 1):
        np.savez(tmp_path / f"{index}.npz", **batch(index + 1))
    (tmp_path / "notes.txt").write_text("not an array")
    data = Data(tmp_path, SPEC)
    assert data.total == 3
    for _ in range(2):
        same(data, [batch(1), batch(2), batch(3)])


def test_what_systems_hide_in_directories_is_no_batch(tmp_path):
    np.savez(tmp_path / "a.npz", **batch())
    (tmp_path / "._a.npz").write_bytes(b"junk")
    assert len(list(Data(tmp_path, SPEC))) == 1
    (tmp_path / "b.npz").write_bytes(b"junk")
    # And NumPy's advice to unpickle it is not passed on.
    with pytest.raises(InvalidArgumentError, match=r"b\.npz: not a \.npz file, or a damaged one$"):
        list(Data(tmp_path, SPEC))


def test_a_directory_of_npy_files_for_one_input(tmp_path):
    np.save(tmp_path / "a.npy", batch()["x"])
    same(Data(str(tmp_path), ONE), [{"x": batch()["x"]}])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_file_with_an_axis_of_samples(tmp_path, save, order):
    whole = {name: np.asarray(array, order=order) for name, array in batch(7).items()}
    save(tmp_path / "all.npz", **whole, label=np.arange(7))
    data = Data(tmp_path / "all.npz", SPEC, batch_size=3)
    assert data.total == 3
    expected = [
        {**{name: array[i : i + 3] for name, array in whole.items()}, "label": np.arange(7)[i : i + 3]}
        for i in (0, 3, 6)
    ]
    same(data, expected)
    same(data, expected)


def test_one_npy_file_with_an_axis_of_samples(tmp_path):
    x = batch(5)["x"]
    np.save(tmp_path / "all.npy", x)
    same(Data(tmp_path / "all.npy", ONE, batch_size=2), [{"x": x[:2]}, {"x": x[2:4]}, {"x": x[4:]}])


def test_a_model_of_fixed_size_takes_whole_batches(tmp_path):
    spec = spec_of(onnx_models.convolutions(batch=2))
    x = onnx_models.normal(5, 3, 8, 8)
    np.save(tmp_path / "all.npy", x)
    data = Data(tmp_path / "all.npy", spec)
    same(data, [{"x": x[:2]}, {"x": x[2:4]}])
    assert data.left_out == 1
    with pytest.raises(InvalidArgumentError, match="batch_size: expected 2, which the model fixes, got 3"):
        Data(tmp_path / "all.npy", spec, batch_size=3)
    np.save(tmp_path / "few.npy", x[:1])
    with pytest.raises(InvalidArgumentError, match="has 1 samples, but the model takes 2 at a time"):
        Data(tmp_path / "few.npy", spec)


def test_a_large_file_is_read_in_parts(tmp_path):
    import tracemalloc

    np.savez(tmp_path / "all.npz", x=np.zeros((4096, 4096), np.float32), z=np.zeros((4096, 1), np.float32))
    spec = spec_of(two_inputs())
    spec.shapes["x"] = None
    tracemalloc.start()
    n = sum(len(b["x"]) for b in Data(tmp_path / "all.npz", spec, batch_size=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 4096
    assert peak < 8 << 20  # of 64 MB


def test_functions_and_iterables():
    def batches():
        yield batch(1)
        yield batch(2)

    expected = [batch(1), batch(2)]
    same(Data(batches, SPEC), expected)
    data = Data(expected, SPEC)
    assert data.total == 2
    same(data, expected)
    same(data, expected)
    once = Data(batches(), SPEC)
    same(once, expected)
    with pytest.raises(InvalidArgumentError, match="can be read again, got an iterator"):
        list(once)


def test_a_function_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "loader_of_test.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.zeros((2, 4), np.float32)\n"
        "def broken():\n    yield np.zeros((2, 4), np.float32)\n    raise RuntimeError('disk on fire')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    same(Data("loader_of_test:batches", ONE), [{"x": np.zeros((2, 4), np.float32)}])
    assert str(tmp_path) not in sys.path
    with pytest.raises(InvalidArgumentError, match="loader_of_test:broken raised RuntimeError: disk on fire"):
        list(Data("loader_of_test:broken", ONE))
    for name in ("loader_of_test:missing", "no_such_module_of_test:batches"):
        with pytest.raises(InvalidArgumentError, match=f"data: there is no function {name}"):
            Data(name, ONE)
    with pytest.raises(InvalidArgumentError, match="expected loader_of_test:number to be a function, got int"):
        Data("loader_of_test:number", ONE)


def test_other_layouts_and_byte_orders():
    x = batch(4)["x"]
    found = list(Data([x[::2], x.astype(">f4"), np.asfortranarray(x)], ONE))
    for each, expected in zip(found, (x[::2], x, x), strict=True):
        np.testing.assert_array_equal(each["x"], expected)
        assert each["x"].dtype == np.dtype(np.float32)


def with_value(value):
    bad = batch()
    bad["x"][1, 2] = value
    return bad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [{"x": batch()["x"]}],
            r"batch 0: there is no input 'z' in it, only 'x'; the model takes x \(float32\[\?, 4\]\)",
        ),
        (
            [{**batch(), "x": batch()["x"].astype(np.float64)}],
            r"expected x to be float32\[\?, 4\], got float64\[2, 4\]",
        ),
        ([{**batch(), "x": np.zeros((2, 5), np.float32)}], r"expected x to be float32\[\?, 4\], got float32\[2, 5\]"),
        ([{**batch(), "x": np.zeros(4, np.float32)}], r"expected x to be float32\[\?, 4\], got float32\[4\]"),
        ([batch(), with_value(np.nan)], "batch 1: 1 of 8 values of x are NaN or infinite"),
        ([with_value(-np.inf)], "batch 0: 1 of 8 values of x are NaN or infinite"),
        ([{"x": np.zeros((0, 4), np.float32), "z": np.zeros((0, 1), np.float32)}], r"x is empty, of shape \(0, 4\)"),
        ([], "expected at least one batch, got none"),
    ],
)
def test_batches_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InvalidArgumentError, match=message):
        list(Data(given, SPEC))


def test_an_array_is_no_batch_of_two_inputs():
    with pytest.raises(TypeError, match="batch 0: expected a dict with x"):
        list(Data([batch()["x"]], SPEC))
    with pytest.raises(TypeError, match="expected a path, a function, arrays, or an iterable of batches, got int"):
        Data(3, SPEC)


def test_files_that_do_not_fit_are_refused(tmp_path):
    def refused(name, message, **arrays):
        if arrays:
            np.savez(tmp_path / name, **arrays)
        with pytest.raises(InvalidArgumentError, match=message):
            list(Data(tmp_path / name, SPEC))

    refused("missing", "is no file or directory that exists")
    refused("missing.npz", "is no file or directory that exists")
    refused("other.npz", "has no input 'x' in it, only 'q'", q=np.zeros(3))
    refused("uneven.npz", "expected equally many samples of each array", x=np.zeros((3, 4)), z=np.zeros((2, 1)))
    refused("scalar.npz", "expected equally many samples of each array", x=np.zeros((3, 4)), z=np.zeros(()))
    refused("none.npz", "has 0 samples", x=np.zeros((0, 4), np.float32), z=np.zeros((0, 1), np.float32))
    (tmp_path / "folder").mkdir()
    refused("folder", "no .npz or .npy file in")
    (tmp_path / "text.txt").write_text("x")
    refused("text.txt", "is neither .npz nor .npy nor a directory")
    for suffix in ("npz", "npy"):
        (tmp_path / f"damaged.{suffix}").write_bytes(b"PK\x03\x04 not really")
    refused("damaged.npz", "damaged.npz: not a .npz file, or a damaged one")
    with pytest.raises(InvalidArgumentError, match=r"damaged\.npy: not a \.npy file, or a damaged one"):
        Data(tmp_path / "damaged.npy", ONE)
    with pytest.raises(InvalidArgumentError, match=r"expected a \.npz file with x"):
        Data(tmp_path / "damaged.npy", SPEC)


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), z=np.zeros((1, 1), np.float32))
    with pytest.raises(InvalidArgumentError, match="objects"):
        Data(tmp_path / "objects.npz", SPEC)


@pytest.mark.parametrize("size", [0, -1, 1.5, "3"])
def test_batch_sizes_are_counts(tmp_path, size):
    np.savez(tmp_path / "all.npz", **batch())
    with pytest.raises((InvalidArgumentError, TypeError), match="batch_size"):
        Data(tmp_path / "all.npz", SPEC, batch_size=size)


def test_strings_and_integers_are_inputs_too():
    graph = onnx_models.model(
        [helper.make_node("Identity", ["s"], ["t"]), helper.make_node("Identity", ["i"], ["j"])],
        [onnx_models.value("s", ["N"], TensorProto.STRING), onnx_models.value("i", ["N"], TensorProto.INT64)],
        [onnx_models.value("t", ["N"], TensorProto.STRING), onnx_models.value("j", ["N"], TensorProto.INT64)],
    )
    spec = spec_of(graph)
    list(Data([{"s": np.array(["a", "b"]), "i": np.array([1, 2])}], spec))
    with pytest.raises(InvalidArgumentError, match=r"expected s to be string\[\?\], got int64\[2\]"):
        list(Data([{"s": np.array([1, 2]), "i": np.array([1, 2])}], spec))


def test_arrays_have_an_axis_of_samples():
    whole = batch(7)
    parts = [{name: array[i : i + 3] for name, array in whole.items()} for i in (0, 3, 6)]
    data = Data({**whole, "label": np.arange(7)}, SPEC, batch_size=3)
    assert data.total == 3
    expected = [{**part, "label": np.arange(7)[3 * i : 3 * i + 3]} for i, part in enumerate(parts)]
    same(data, expected)
    same(data, expected)
    one = [{"x": part["x"]} for part in parts]
    same(Data(whole["x"], ONE, batch_size=3), one)
    same(Data({"x": whole["x"]}, ONE, batch_size=3), one)
    # Those that a function returns too, in batches of 8.
    same(Data(lambda: whole["x"], ONE), [{"x": whole["x"]}])
    same(Data(lambda: whole, SPEC), [whole])
    fixed = Data(onnx_models.normal(5, 3, 8, 8), spec_of(onnx_models.convolutions(batch=2)))
    assert [len(each["x"]) for each in fixed] == [2, 2]
    assert fixed.left_out == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (batch()["x"], r"data: expected a dict with x \(float32"),
        ({"x": batch()["x"]}, "has no input 'z' in it, only 'x'"),
        ({**batch(), "z": np.ones((3, 1), np.float32)}, r"expected equally many samples of each array .* z \(3, 1\)"),
        ({**batch(), "z": np.float32(1)}, r"expected equally many samples of each array .* z \(\)"),
        ({}, "has no input 'x' in it, only nothing"),
        (batch(0), "has 0 samples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Data(given, SPEC)


LABELS = np.array([1, 0])


@pytest.mark.parametrize(
    "given",
    [
        (batch()["x"], batch()["z"], LABELS),
        [batch()["x"], batch()["z"], LABELS],
        ((batch()["x"], batch()["z"]), LABELS),
        [[batch()["x"], batch()["z"]], LABELS],
        (batch(), LABELS),
        (batch(), [1, 0]),
    ],
)
def test_tuples_are_inputs_by_their_position_and_labels(given):
    same(Data([given], SPEC), [{**batch(), "labels": LABELS}])


def test_what_is_behind_the_inputs_has_names_of_its_own():
    x, ragged = batch()["x"], [[1.0], [2.0, 3.0]]
    [found] = Data([(x, LABELS, {"boxes": 3}, ragged, [x, x[:1]])], ONE)
    assert list(found) == ["x", "labels", "labels_1", "labels_2", "labels_3"]
    np.testing.assert_array_equal(found["labels"], LABELS)
    assert found["labels_1"][()] == {"boxes": 3}
    assert list(found["labels_2"]) == ragged
    assert [len(each) for each in found["labels_3"]] == [2, 1]
    taken = spec_of(onnx_models.product(k=4, n=3))
    taken.types, taken.shapes = {"labels": taken.types["x"]}, {"labels": taken.shapes["x"]}
    [found] = Data([(x, LABELS)], taken)
    assert list(found) == ["labels", "labels_1"]


def test_rows_of_numbers_are_no_tuple_of_inputs():
    spec = spec_of(onnx_models.product(k=4, n=3))
    spec.types["x"] = np.dtype(np.float64)
    for rows in ([[1.0, 2.0, 3.0, 4.0]], ((1.0, 2.0, 3.0, 4.0),), [np.float64([1.0, 2.0, 3.0, 4.0]).tolist()]):
        same(Data([rows], spec), [{"x": np.array(rows)}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((batch()["x"],), r"batch 0: expected 2 arrays, x \(.*, z \(.*\), got 1"),
        (((batch()["x"],) * 3, LABELS), "batch 0: expected 2 arrays, .*, got 3"),
        (({"x": batch()["x"]}, LABELS), "batch 0: there is no input 'z' in it, only 'x', 'labels'"),
        ((LABELS, batch()["x"]), r"batch 0: expected x to be float32\[\?, 4\], got int64\[2\]"),
        ({"x": [[1.0], [2.0, 3.0]], "z": 1}, "batch 0: x: expected an array: "),
    ],
)
def test_tuples_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InvalidArgumentError, match=message):
        list(Data([given], SPEC))


def test_masks_are_not_lost():
    with pytest.raises(TypeError, match="batch 0: x: expected a plain array, got a masked one"):
        list(Data([np.ma.masked_invalid(batch()["x"])], ONE))


def test_loaders_of_pytorch():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    x, z, labels = torch.arange(28.0).reshape(7, 4), torch.ones(7, 1), torch.arange(7)
    loader = DataLoader(TensorDataset(x, z, labels), batch_size=3)
    data = Data(loader, SPEC)
    assert data.total == 3
    expected = [
        {"x": x[i : i + 3].numpy(), "z": z[i : i + 3].numpy(), "labels": labels[i : i + 3].numpy()} for i in (0, 3, 6)
    ]
    same(data, expected)
    same(data, expected)
    same(Data(x, ONE, batch_size=3), [{"x": each["x"]} for each in expected])

    class Stream(IterableDataset):
        def __len__(self):
            raise TypeError("nobody knows")

        def __iter__(self):
            return iter(TensorDataset(x, labels))

    data = Data(DataLoader(Stream(), batch_size=3), ONE)
    assert data.total is None
    same(data, [{"x": each["x"], "labels": each["labels"]} for each in expected])
