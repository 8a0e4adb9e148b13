"""The reader for a path, by what is there."""

from pathlib import Path

from flatbayes.data.hub import is_hub_name
from flatbayes.data.image_folder import ImageFolder, image_files
from flatbayes.data.image_parquet import ImageParquet
from flatbayes.data.npz import Npz
from flatbayes.data.parquet import image_columns, part_files
from flatbayes.data.source import Source


def source_for(path: str) -> Source:
    """A source that reads this path, its other options as they come.

    Args:
        path: A .npz file, a parquet file with images, a folder with such files or with images, or the name of
            a dataset on the Hugging Face hub, `owner/name`.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is something else, or a table, whose target must be named.
    """
    here = Path(path)
    if is_hub_name(path):
        return ImageParquet(path=path)
    if not here.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Check the path.")
    if here.is_dir():
        if any(here.rglob("*.parquet")):
            return _image_parquet(path, part_files(here)["train"][0])
        if image_files(here):
            return ImageFolder(path=path)
        raise ValueError(f"There are neither parquet files nor images in {path}. Check the path.")
    match here.suffix.lower():
        case ".npz":
            return Npz(path=path)
        case ".parquet":
            return _image_parquet(path, here)
        case ".csv":
            raise ValueError(_needs_target(path))
        case suffix:
            raise ValueError(
                f"No reader is known for {path} (suffix {suffix!r}). Known are .npz, .parquet, .csv (with a "
                "target), and folders of images or parquet files."
            )


def _image_parquet(path: str, file: Path) -> Source:
    columns = image_columns(file)
    if not columns:
        raise ValueError(_needs_target(path))
    return ImageParquet(path=path, image="img" if "img" in columns else columns[0])


def _needs_target(path: str) -> str:
    return (
        f"{path} is a table, and which of its columns is the class cannot be told from the file. "
        f"Say so: Table(path={path!r}, target=...)."
    )
