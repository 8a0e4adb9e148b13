"""Where datasets are stored: local folders, and downloads from the Hugging Face hub."""

import os
import re
from pathlib import Path

from flatbayes.core.optional import require_package

DATA_ROOT_VARIABLE = "FLATBAYES_DATA"
"""Environment variable with the folder that holds one subfolder per dataset."""


def find_data_root(
    root: str | None, name: str, title: str, expected_contents: str, hub_name: str | None = None
) -> Path:
    """Find the folder of a dataset: `root`, else `$FLATBAYES_DATA/name`, else a download from the hub.

    Args:
        root: The folder that the user gave, if any.
        name: Subfolder of the folder that the environment variable names.
        title: Name of the dataset for messages.
        expected_contents: What the folder must hold, for messages.
        hub_name: `owner/name` on the Hugging Face hub; None if the dataset cannot be downloaded.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: No folder is given and the dataset cannot be downloaded.
    """
    shared = os.environ.get(DATA_ROOT_VARIABLE)
    if root is None and not shared and hub_name is not None:
        return download_dataset(hub_name)
    advice = f"Set root (or the environment variable {DATA_ROOT_VARIABLE}) to one with {expected_contents}"
    if root is None and not shared:
        raise ValueError(f"{title} is not downloaded, and no folder is given. {advice}.")
    folder = Path(root) if root is not None else Path(str(shared)) / name
    if not folder.is_dir():
        alternative = ", or set neither to download it" if hub_name is not None else ""
        raise FileNotFoundError(f"There is no folder {folder} for {title}. {advice}{alternative}.")
    return folder


def is_hub_name(path: str) -> bool:
    """Whether a path has the form `owner/name` of a dataset on the hub and does not exist locally."""
    matches = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path)
    return bool(matches) and not path.endswith(".parquet") and not Path(path).exists()


def download_dataset(name: str, subfolder: str = "") -> Path:
    """Folder with the parquet files of a dataset, `owner/name`, downloaded or in the cache of the hub's client."""
    with require_package("hub"):
        from huggingface_hub import snapshot_download
    try:
        pattern = f"{subfolder}/*.parquet" if subfolder else "*.parquet"
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=pattern)) / subfolder
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is not a local path, and could not be downloaded from the Hugging Face hub: {error} "
            "Check the name and the network, or give the path of a folder."
        ) from error
