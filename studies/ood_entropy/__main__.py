"""Why a flat MAP tells foreign images apart worse on digits: is it flatness, or the weight decay of the plain twin?

The comparison of configs/digits-all.yaml chose a weight decay of 0.005 for the plain MAP. Here both twins are trained
with each of several, and measured on what the AUROC of foreign images depends on: how sure the networks are of those,
and of their own test images.

    FLATBAYES_DATA=... python -m studies.ood_entropy runs/foreign
"""

import sys
from pathlib import Path
from statistics import fmean, stdev

from flatbayes.core.files import write_json
from flatbayes.data import CIFAR10, load_test_split, match_input_format
from flatbayes.experiments import EvaluationConfig
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import MAP
from flatbayes.prediction import evaluate, evaluate_ood
from flatbayes.training import Cosine, fit
from studies.hyperparameters.digits import COMMON, trained

DECAYS = (1e-4, 1e-3, 5e-3)
SEEDS = 10


def measured(decay: float, flatness, seed: int) -> dict[str, float]:
    """One training."""
    method = trained(MAP(), 0.2, decay, Cosine())
    data = COMMON.source.load(seed)
    fitted = fit(
        COMMON.model, data, MAP(), flatness, method.apply_overrides(COMMON.config), seed=seed, show_progress=False
    )
    examples = EvaluationConfig().max_examples
    foreign = match_input_format(load_test_split(CIFAR10()).subsample(examples).input_tensor, data.train.inputs)
    own = data.test.subsample(examples).input_tensor
    scores = evaluate_ood(fitted, own, foreign, 1).scores
    return {
        "auroc": scores["entropy"].auroc,
        "nll": evaluate(fitted, data.test.inputs, data.test.targets, 1).metrics["nll"],
        "entropy_own": float(fitted.predict(own, 1).entropy.mean()),
        "entropy_foreign": float(fitted.predict(foreign, 1).entropy.mean()),
    }


def main(folder: Path) -> None:
    """Means over seeds of every cell."""
    rows = []
    for decay in DECAYS:
        for flatness in (Plain(), SAM(rho=0.4)):
            found = [measured(decay, flatness, seed) for seed in range(SEEDS)]
            cell = {key: (fmean(one[key] for one in found), stdev(one[key] for one in found)) for key in found[0]}
            rows.append({"weight_decay": decay, "flatness": type(flatness).__name__, **cell})
            print(rows[-1], flush=True)
    write_json(folder / "foreign.json", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
