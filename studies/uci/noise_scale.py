"""Why flatness costs a regression with hardly any noise, and helps one that overfits: it widens the noise.

A Gaussian likelihood fits its noise to the residuals that it sees, and a flat one sees those at the worst point of
the ball. Here is the noise that the plain and the flat MAP of studies/uci end with, beside their residuals on
test data, all as shares of the targets' standard deviation: four splits of a set that is nearly free of noise, and of
one that is not.

    FLATBAYES_DATA=... python -m studies.uci.noise_scale docs/results/uci-noise-scale.json
"""

import sys
from pathlib import Path
from statistics import fmean

from flatbayes.core.files import write_json
from flatbayes.data import UCI
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import MAP
from flatbayes.prediction import evaluate
from flatbayes.training import fit
from studies.uci.study import CANDIDATES, MODEL, UNUSED, recipe_for

SPLITS = 4


def measured(name: str, flatness, split: int) -> dict[str, float]:
    """One training."""
    data = UCI(name=name, val_size=UNUSED).load(split)
    recipe = CANDIDATES["MAP"][0].apply_overrides(recipe_for(len(data.train) + len(data.val)))
    fitted = fit(MODEL, data, MAP(), flatness, recipe, seed=split, show_progress=False)
    predictive, unit = fitted.predict(data.test.inputs, 1), float(data.train.targets.std())
    return {
        "noise": float(predictive.member_stds.mean()) / unit,
        "test_residual": float((predictive.mean - data.test.targets).std()) / unit,
        "nll": evaluate(fitted, data.test.inputs, data.test.targets, 1).metrics["nll"],
    }


def main(out: Path) -> None:
    """Means over splits."""
    rows = []
    for name in ("energy", "wine-quality-red"):
        for flatness in (Plain(), SAM(rho=0.003), SAM(rho=0.03)):
            found = [measured(name, flatness, split) for split in range(SPLITS)]
            rows.append({"data": name, "rho": getattr(flatness, "rho", 0.0)})
            rows[-1] |= {key: fmean(one[key] for one in found) for key in found[0]}
            print(rows[-1], flush=True)
    write_json(out, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
