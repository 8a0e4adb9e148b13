import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from flatbayes.data import Npz
from flatbayes.data.arrays import to_inputs
from flatbayes.data.npz import iter_array_chunks, read_array_shape, read_arrays

RANDOM = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return save


def test_features(save):
    x, y = RANDOM.normal(size=(50, 3)), np.arange(50) % 2
    raw = Npz(path=save(x=x, y=y)).read()
    assert torch.equal(raw.unsplit.inputs, torch.from_numpy(x))
    assert raw.unsplit.targets.tolist() == y.tolist()
    assert raw.class_names == ("0", "1")
    assert raw.feature_names == ("0", "1", "2")
    assert raw.test is None


def test_a_test_split_and_other_array_names(save):
    arrays = {
        "x": np.zeros((6, 2)),
        "y": np.arange(6) % 2,
        "x_test": np.ones((4, 2)),
        "y_test": np.arange(4) % 3,
    }
    path = save(**arrays)
    raw = Npz(path=path).read()
    assert len(raw.test) == 4
    assert raw.class_names == ("0", "1", "2")
    swapped = Npz(path=path, inputs="x_test", targets="y_test", test_inputs="x", test_targets="y").read()
    assert (len(swapped.unsplit), len(swapped.test)) == (4, 6)
    assert Npz(path=path, test_inputs="none", test_targets="none").read().test is None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 1, 8, 9), (5, 1, 8, 9)),
    ],
)
@pytest.mark.parametrize(("kind", "kept"), [(np.uint8, torch.uint8), (np.float64, torch.float32)])
def test_images(shape, expected, kind, kept):
    array = (RANDOM.random(shape) * 255).astype(kind)
    images = to_inputs(array, "x")
    assert images.shape == expected
    assert images.dtype == kept
    assert images.is_contiguous()
    last = array[..., -1] if shape[-1] in (1, 3) else array[:, -1] if len(shape) == 4 else array
    torch.testing.assert_close(images[:, -1], torch.from_numpy(last).to(kept))


def test_missing_arrays_are_listed(save):
    with pytest.raises(ValueError, match=r"lacks the arrays \['x'\]. It has \['a', 'y'\]"):
        Npz(path=save(a=np.zeros((2, 2)), y=np.arange(2))).read()
    with pytest.raises(ValueError, match=r"lacks the arrays \['y_test'\]"):
        Npz(path=save(x=np.zeros((2, 2)), y=np.arange(2), x_test=np.zeros((2, 2)))).read()


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((3, 0)), np.zeros((1, 2, 3, 4, 5)), np.array([["a"]]), np.zeros((2, 2), complex)],
)
def test_invalid_inputs_are_refused(array):
    with pytest.raises(ValueError, match=r"x must be numbers of the shape .*got"):
        to_inputs(array, "x")


def test_images_without_an_axis_of_channels():
    with pytest.raises(ValueError, match=r"\(2, 8, 9, 10\).* neither"):
        to_inputs(np.zeros((2, 8, 9, 10)), "x")


@pytest.mark.parametrize("y", [np.array([0.0, 0.5]), np.eye(2, dtype=int), np.array(["a", "b"])])
def test_invalid_labels_are_refused(save, y):
    with pytest.raises(ValueError, match=r"'y' of .*data.npz must be whole numbers"):
        Npz(path=save(x=np.zeros((2, 2)), y=y), task="classification").read()


def test_fractions_are_regression_targets(save):
    x, y = RANDOM.normal(size=(30, 3)), RANDOM.normal(size=(30, 2))
    raw = Npz(path=save(x=x, y=y[:, 0], x_test=x[:4], y_test=y[:4, 0])).read()
    assert (raw.target_names, raw.class_names) == (("y",), ())
    torch.testing.assert_close(raw.test.targets, torch.from_numpy(y[:4, 0]))
    splits = Npz(path=save(x=x, y=y)).load(0)
    assert splits.target_names == ("y_0", "y_1")
    assert splits.train.targets.shape[1] == 2


def test_whole_numbers_are_regression_targets_on_request(save):
    x = np.zeros((4, 2))
    assert Npz(path=save(x=x, y=np.arange(4)), task="regression").read().unsplit.targets.tolist() == [0, 1, 2, 3]
    with pytest.raises(
        ValueError,
        match=r"'y' of .*npz: whole numbers as float64.* set the option task of the data to regression",
    ):
        Npz(path=save(x=x, y=np.arange(4.0))).read()
    with pytest.raises(ValueError, match=r"must be numbers of the shape \[n\] or \[n, targets\], got <U1"):
        Npz(path=save(x=x, y=np.array(["a"] * 4)), task="regression").read()


def test_gaps_and_infinities_are_refused(save):
    x = np.zeros((40, 2))
    with pytest.raises(ValueError, match="1 of the 3 classes has no example; the first is '1'"):
        Npz(path=save(x=x, y=np.arange(40) % 2 * 2)).load(0)
    x[3, 1] = 1e300  # beyond float32
    with pytest.raises(ValueError, match=r"beyond the range of float32 .* 1e\+300 in row 3 .* feature '1'"):
        Npz(path=save(x=x, y=np.arange(40) % 2)).load(0)


def test_objects_are_never_unpickled(save):
    with pytest.raises(ValueError, match=r"data.npz cannot be read as .npz: .*holds Python objects"):
        Npz(path=save(x=np.array([{}, {}], dtype=object), y=np.arange(2))).read()


def test_damage_names_the_file(save, tmp_path, truncate):
    path = save(x=RANDOM.normal(size=(50, 3)), y=np.arange(50) % 2)
    truncate(tmp_path / "data.npz")
    with pytest.raises(ValueError, match=r"data.npz cannot be read"):
        Npz(path=path).read()
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"one.npz cannot be read"):
        Npz(path=str(tmp_path / "one.npz")).read()
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.npz"):
        Npz(path=str(tmp_path / "missing.npz")).read()


def test_flipped_bits_raise_only_value_errors(save, tmp_path):
    path = tmp_path / "data.npz"
    content = (save(x=RANDOM.normal(size=(5, 3)), y=np.arange(5) % 2), path.read_bytes())[1]
    messages = []
    for _ in range(500):
        damaged = bytearray(content)
        damaged[RANDOM.integers(len(content))] ^= 1 << RANDOM.integers(8)
        path.write_bytes(damaged)
        try:
            Npz(path=str(path)).read()
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("data.npz" in message for message in messages)


class TestChunks:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_chunks_are_the_rows_in_order(self, tmp_path, order, save):
        x = np.asarray(np.random.default_rng(0).normal(size=(25, 3, 2)), order=order)
        save(tmp_path / "a.npz", x=x, other=np.arange(3))
        chunks = list(iter_array_chunks(tmp_path / "a.npz", "x", 10))
        assert [len(piece) for piece in chunks] == [10, 10, 5]
        assert np.array_equal(np.concatenate(chunks), x)
        assert read_array_shape(tmp_path / "a.npz", "x") == (25, 3, 2)

    def test_a_flipped_bit_is_found_by_the_last_chunk(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.zeros((100, 5)))
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[1000] ^= 1
        (tmp_path / "a.npz").write_bytes(bytes(content))
        with pytest.raises(ValueError, match=r"cannot be read as \.npz.*CRC"):
            list(iter_array_chunks(tmp_path / "a.npz", "x", 100))


def write_array_header(path, header, content=b"", size=None):
    """An archive whose array says what it likes about itself."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("x.npy", start + content)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-4, -4)}\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': " + b"(" * 5000,
        b"__import__('os').system('false')\n",
    ],
)
def test_wrong_headers_are_refused_before_memory_is_allocated(tmp_path, header):
    path = write_array_header(tmp_path / "a.npz", header, bytes(16))
    for read in (lambda: list(iter_array_chunks(path, "x", 10)), lambda: read_arrays(path, ["x"])):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
            read()
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
