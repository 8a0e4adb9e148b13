"""Effect of flatness and weight decay on the entropy of a MAP network on out-of-distribution images.

On digits the flat MAP has a lower AUROC for out-of-distribution images than the plain one. `configs/digits-all.yaml`
has
a weight decay of 0.005, selected for the plain MAP. Here both are trained with each of several weight decays, and
evaluated by AUROC and by the entropy of predictions on test images and on out-of-distribution images.

    FLATBAYES_DATA=... python -m studies.ood_entropy runs/ood
"""

import sys
from pathlib import Path
from statistics import fmean, stdev

from flatbayes.core.files import write_json
from flatbayes.data import CIFAR10, load_test_split, match_input_format
from flatbayes.experiments import EvaluationConfig
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.posteriors import MAP
from flatbayes.prediction import evaluate, evaluate_ood
from flatbayes.training import Cosine, fit
from studies.hyperparameters.digits import COMMON, make_sgd_method

DECAYS = (1e-4, 1e-3, 5e-3)
NUM_SEEDS = 10


def evaluate_map(decay: float, flatness: Flatness, seed: int) -> dict[str, float]:
    """Metrics of one training."""
    config = make_sgd_method(MAP(), 0.2, decay, Cosine()).apply_overrides(COMMON.config)
    data = COMMON.source.load(seed)
    fitted = fit(COMMON.model, data, MAP(), flatness, config, seed=seed, show_progress=False)
    max_examples = EvaluationConfig().max_examples
    ood_images = load_test_split(CIFAR10()).subsample(max_examples).input_tensor
    ood_inputs = match_input_format(ood_images, data.train.inputs)
    test_inputs = data.test.subsample(max_examples).input_tensor
    scores = evaluate_ood(fitted, test_inputs, ood_inputs, 1).scores
    return {
        "auroc": scores["entropy"].auroc,
        "nll": evaluate(fitted, data.test.inputs, data.test.targets, 1).metrics["nll"],
        "entropy_own": float(fitted.predict(test_inputs, 1).entropy.mean()),
        "entropy_foreign": float(fitted.predict(ood_inputs, 1).entropy.mean()),
    }


def main(folder: Path) -> None:
    """Write mean and standard deviation over seeds for every weight decay and flatness."""
    rows = []
    for decay in DECAYS:
        for flatness in (Plain(), SAM(rho=0.4)):
            runs = [evaluate_map(decay, flatness, seed) for seed in range(NUM_SEEDS)]
            summary = {key: (fmean(run[key] for run in runs), stdev(run[key] for run in runs)) for key in runs[0]}
            rows.append({"weight_decay": decay, "flatness": type(flatness).__name__, **summary})
            print(rows[-1], flush=True)
    write_json(folder / "foreign.json", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
