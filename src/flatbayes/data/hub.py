"""Datasets of the Hugging Face hub, downloaded once and then found in its cache."""

import re
from pathlib import Path

from flatbayes.data.optional import require_package


def is_hub_name(path: str) -> bool:
    """Whether this may be `owner/name` on the hub: no such thing here, and of that form."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path)
    return bool(form) and not path.endswith(".parquet") and not Path(path).exists()


def download_dataset(name: str, subfolder: str = "") -> Path:
    """The folder with the parquet files of a dataset.

    Args:
        name: `owner/name`.
        subfolder: The one in it that is meant, where it holds several datasets.

    Raises:
        FileNotFoundError: There is no such dataset, or no way to reach it.
    """
    with require_package("hub"):
        from huggingface_hub import snapshot_download
    try:
        pattern = f"{subfolder}/*.parquet" if subfolder else "*.parquet"
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=pattern)) / subfolder
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is not a path here, and could not be downloaded from the Hugging Face hub: {error} "
            "Check the name and the network, or give the path of a folder."
        ) from error
