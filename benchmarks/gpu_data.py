"""CIFAR-10 as raw arrays, from whatever form of it a machine has.

    python benchmarks/gpu_data.py SOURCE cifar10.npz      # write the arrays, for a machine without pyarrow and Pillow

A source is one of:

* the folder `cifar-10-batches-py` with the pickles of https://www.cs.toronto.edu/~kriz/cifar.html, or its parent.
  Only arrays are read from them: a pickle that names any other object is refused.
* a .npz file with `x`, `y`, `x_test` and `y_test`, which this program writes.
* a folder with train*.parquet and test*.parquet in the layout of the Hugging Face hub; needs pyarrow and Pillow.
"""

import io
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCH_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST_FILE = "test_batch"
ARRAY_NAMES = ("x", "y", "x_test", "y_test")
PICKLED_NAMES = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
RECONSTRUCT = "_reconstruct"


class ImageArrays(NamedTuple):
    """Training and test images, [n, 3, 32, 32] (uint8), and their labels, [n] (int64)."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, texts, lists, dictionaries and NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the names that a pickled array has.

        Raises:
            ValueError: The pickle names another object.
        """
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == RECONSTRUCT:
            return np.core.multiarray._reconstruct if not hasattr(np, "_core") else np._core.multiarray._reconstruct
        if (module, name) not in PICKLED_NAMES:
            raise ValueError(f"The pickle names {module}.{name}, and an array needs no such object: it is not read.")
        return super().find_class(module, name)


def read_arrays(source: str | Path) -> ImageArrays:
    """Read the images and labels.

    Raises:
        ValueError: It is none of the sources above, or damaged.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAY_NAMES if name not in file]
            if missing:
                raise ValueError(f"{path} lacks the arrays {missing}; it has {file.files}.")
            return check_arrays(ImageArrays(*(file[name] for name in ARRAY_NAMES)))
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / TEST_FILE).is_file():
            batches = [read_batch(folder / name) for name in BATCH_FILES]
            images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
            return check_arrays(ImageArrays(images, labels, *read_batch(folder / TEST_FILE)))
    if path.is_dir() and any(path.glob("*.parquet")):
        return read_parquet(path)
    raise ValueError(
        f"{path} is no source of CIFAR-10. Give a .npz file with {', '.join(ARRAY_NAMES)}, the folder "
        "cifar-10-batches-py, or a folder with train*.parquet and test*.parquet."
    )


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and labels of one pickle."""
    content: Mapping[bytes, Any] = ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return content[b"data"].reshape(-1, 3, 32, 32), np.asarray(content[b"labels"], dtype=np.int64)


def read_parquet(folder: Path) -> ImageArrays:
    """Decode the images of parquet files."""
    from flatbayes.data import CIFAR10
    from flatbayes.data.source import take_all

    raw = CIFAR10(root=str(folder)).read()
    splits = [take_all(split) for split in (raw.unsplit, raw.test) if split is not None]
    return check_arrays(ImageArrays(*(array.numpy() for split in splits for array in (split.inputs, split.targets))))


def check_arrays(arrays: ImageArrays) -> ImageArrays:
    """Check the shapes and types, in case that a file has other images.

    Raises:
        ValueError: They are not images of 32 x 32 pixels in color, with a label each.
    """
    for images, labels in ((arrays.x, arrays.y), (arrays.x_test, arrays.y_test)):
        if images.dtype != np.uint8 or images.shape != (len(labels), 3, 32, 32):
            raise ValueError(
                f"Expected one uint8 image of the shape (3, 32, 32) for each of {len(labels)} labels, got "
                f"{images.dtype} of the shape {images.shape}."
            )
    return arrays


def main(source: str, target: str) -> None:
    """Write the arrays of a source to a .npz file."""
    arrays = read_arrays(source)
    np.savez_compressed(target, **arrays._asdict())
    size = Path(target).stat().st_size / 1e6
    print(f"{target}: {len(arrays.y)} training and {len(arrays.y_test)} test images, {size:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    main(*sys.argv[1:])
