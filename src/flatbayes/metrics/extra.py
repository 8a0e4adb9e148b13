"""Direction and definition of what a comparison measures beside the usual metrics, family by family."""

from collections.abc import Mapping
from types import MappingProxyType

METRIC_FAMILIES: Mapping[str, Mapping[str, tuple[bool, str]]] = MappingProxyType(
    {
        "Calibration": MappingProxyType(
            {
                "nll_scaled": (False, "NLL after temperature scaling on the validation part, in nats"),
                "ece_scaled": (False, "ECE after temperature scaling on the validation part"),
                "adaptive_ece": (False, "ECE with bins of equally many predictions"),
                "classwise_ece": (False, "ECE of each class's probability, averaged over classes"),
                "aurc": (False, "AURC: error rate among the predictions kept, averaged over the share kept"),
            }
        ),
        "Shift": MappingProxyType(
            {
                "shift_accuracy": (True, "Accuracy on corrupted images, averaged over corruptions and severities"),
                "shift_nll": (False, "NLL on corrupted images, averaged over corruptions and severities"),
                "shift_ece": (False, "ECE on corrupted images, averaged over corruptions and severities"),
            }
        ),
        "Foreign inputs": MappingProxyType(
            {
                "ood_auroc": (True, "AUROC of foreign against test inputs by the entropy of the prediction"),
                "ood_aupr": (True, "AUPR of the same, foreign inputs positive"),
                "ood_fpr95": (False, "Test inputs taken for foreign where 95 % of the foreign are found"),
                "ood_auroc_mi": (True, "AUROC of foreign against test inputs by mutual information"),
            }
        ),
        "Sharpness": MappingProxyType(
            {
                "train_loss": (False, "Loss on training examples at draws of the posterior"),
                "gap_one_step": (False, "Rise of the training loss after one ascent step, mean over draws"),
                "gap_worst": (False, "Rise to the worst point found in the ball, mean over draws"),
                "gap_average": (False, "Mean rise over random points at the same distance, mean over draws"),
                "gap_adaptive": (False, "Rise in a ball that scales with the weights, mean over draws"),
                "top_eigenvalue": (False, "Largest eigenvalue of the Hessian, mean over draws"),
                "trace": (False, "Trace of the Hessian, mean over draws"),
            }
        ),
    }
)
"""For each name, whether higher is better, and one line of definition."""
