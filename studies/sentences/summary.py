"""Summary of the finished trainings, and the words of the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.fine_tuning.labels import HIGHER_IS_BETTER, METRIC_LABELS, Labels
from studies.fine_tuning.summary import SettingPlan, read_choices, summarize_trainings
from studies.sentences.study import NUM_DRAWS, SETTINGS, VARIATIONAL, count_trainings, load_trainings
from studies.sentences.task import NUM_OOD, NUM_TEST, NUM_VAL

METRICS = HIGHER_IS_BETTER | {"auroc_shuffled": True, "auroc_foreign": True}
"""Whether higher is better."""
PACKAGES = ("transformers", "tokenizers", "peft")
TRAINED = {
    "default": "all weights, default options",
    "default-lora": "adapters, default options",
    "full": "all weights",
    "lora": "adapters (LoRA, rank 8)",
}
LABELS = Labels(
    "sentences",
    "sentences",
    TRAINED,
    METRIC_LABELS | {"auroc_shuffled": "AUROC, shuffled", "auroc_foreign": "AUROC, foreign"},
    PACKAGES,
)


def summarize_study(folder: Path, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    plans = [
        SettingPlan(
            s.name, s.trained, s.size, s.num_epochs, count_trainings(s, read_choices(folder / s.name)), VARIATIONAL
        )
        for s in SETTINGS
    ]
    data = summarize_trainings(list(load_trainings(folder)), folder, plans, METRICS, PACKAGES, earlier)
    sizes = {"val": NUM_VAL, "test": NUM_TEST, "shuffled": NUM_OOD, "foreign": NUM_OOD}
    return {**data, "num_sentences": sizes, "num_draws": NUM_DRAWS}
