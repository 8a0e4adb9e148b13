"""Known data sets in folders: as the archive that was published, or as what is in it."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatbayes.data.hub import download_dataset


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A tar archive as its authors publish it.

    Attributes:
        name: Of the file.
        folder: The one that it unpacks to.
        files: What is read of it.
        md5: Published checksum.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    md5: str


def find_data_root(
    root: str | None, name: str, title: str, expected_contents: str, hub_name: str | None = None, subfolder: str = ""
) -> Path:
    """The folder of a data set: the one given, the one of this name in FLATBAYES_DATA, or one from the hub.

    Args:
        root: The folder given, if any.
        name: Of the folder in the one that the environment variable FLATBAYES_DATA names.
        title: Of the data set, for messages.
        expected_contents: What the folder should hold, for messages.
        hub_name: `owner/name` on the Hugging Face hub; None where it is not there.
        subfolder: The folder there, where it holds several datasets.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: None is named, and nothing can be downloaded.
    """
    shared = os.environ.get("FLATBAYES_DATA")
    if root is None and not shared and hub_name is not None:
        return download_dataset(hub_name, subfolder)
    wanted = f"Set root (or the environment variable FLATBAYES_DATA) to one with {expected_contents}"
    if root is None and not shared:
        raise ValueError(f"{title} is read from a folder of yours, and none is named. {wanted}.")
    folder = Path(root) if root is not None else Path(str(shared)) / name
    if not folder.is_dir():
        also = ", or neither to download it" if hub_name is not None else ""
        raise FileNotFoundError(f"There is no folder {folder} for {title}. {wanted}{also}.")
    return folder


def read_archives(folder: Path, archives: Sequence[Archive]) -> tuple[Archive, dict[str, bytes]] | None:
    """The contents of the files of the first archive that is in a folder, packed or not; None if none is.

    Raises:
        FileNotFoundError: Some of its files are missing.
        ValueError: It is damaged, or not the published one.
    """
    for archive in archives:
        for place in (folder / archive.folder, folder):
            there = [place / name for name in archive.files if (place / name).is_file()]
            if there:
                return archive, {name: read_file(place / name) for name in archive.files}
    for archive in archives:
        if (folder / archive.name).is_file():
            return archive, unpacked(folder / archive.name, archive)
    return None


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        FileNotFoundError: It is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, and others of its data set are there. Copy it too.")
    return path.read_bytes()


def unpacked(path: Path, archive: Archive) -> dict[str, bytes]:
    """The wanted files of a tar archive, read and not written anywhere.

    Raises:
        ValueError: It is not the published one, damaged, or lacks a file.
    """
    check_md5(path, archive.md5)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in archive.files and member.isfile() and (stream := tar.extractfile(member)) is not None:
                    found[name] = stream.read()
                if len(found) == len(archive.files):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}. Download it again.") from error
    missing = [name for name in archive.files if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {missing}. Download it again.")
    return found


def check_md5(path: Path, published: str) -> None:
    """Refuse a file that is not the published one. MD5 is what was published; it finds damage, not malice.

    Raises:
        ValueError: Its checksum is another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != published:
        raise ValueError(
            f"{path} has the MD5 checksum {found}, and that of the published file is {published}. It is "
            "incomplete or another file: download it again; or unpack it, if you know what it is, and remove the "
            "archive."
        )
