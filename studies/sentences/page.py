"""Words on the page of the study."""

from studies.fine_tuning.labels import Labels
from studies.sentences.summary import PACKAGES

TRAINED = {
    "default": "all weights, default options",
    "default-lora": "adapters, default options",
    "full": "all weights",
    "lora": "adapters (LoRA, rank 8)",
}
NAMES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
    "nll_calibrated": "NLL, scaled",
    "auroc_shuffled": "AUROC, shuffled",
    "auroc_foreign": "AUROC, foreign",
}
LABELS = Labels("sentences", "sentences", TRAINED, NAMES, PACKAGES)
