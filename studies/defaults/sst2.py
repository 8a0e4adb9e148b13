"""Sentence features of SST-2 for the benchmark: outputs of MiniLM-L6, averaged over tokens, rounded to 8 bits.

    FLATBAYES_DATA=... python -m studies.defaults.sst2 FOLDER_OF_THE_MODEL

FOLDER_OF_THE_MODEL has the files of sentence-transformers/all-MiniLM-L6-v2. It writes `sst2.npz` beside this file:
1000 random sentences of train.tsv and 600 of dev.tsv.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

NUM_TRAIN, NUM_TEST, BATCH_SIZE = 1000, 600, 50


def main(model_folder: str) -> None:
    """Compute the features, and write them."""
    from transformers import AutoModel, AutoTokenizer

    root = Path(os.environ["FLATBAYES_DATA"], "sst2")
    tables = [
        pd.read_csv(root / name, sep="\t", header=None, names=["text", "label"], quoting=csv.QUOTE_NONE).sample(
            size, random_state=0
        )
        for name, size in (("train.tsv", NUM_TRAIN), ("dev.tsv", NUM_TEST))
    ]
    texts = [text for table in tables for text in table.text]
    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), AutoModel.from_pretrained(model_folder).eval()
    batches = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH_SIZE):
            tokens = tokenizer(texts[start : start + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt")
            mask = tokens["attention_mask"][..., None].float()
            hidden = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            batches.append(torch.nn.functional.normalize(hidden))
    features = torch.cat(batches).numpy()
    scale = float(np.abs(features).max() / 127)
    np.savez_compressed(
        Path(__file__).with_name("sst2.npz"),
        features=np.round(features / scale).astype(np.int8),
        scale=scale,
        labels=np.concatenate([table.label.to_numpy() for table in tables]).astype(np.int8),
        is_test=np.repeat([False, True], [NUM_TRAIN, NUM_TEST]),
    )


if __name__ == "__main__":
    main(sys.argv[1])
