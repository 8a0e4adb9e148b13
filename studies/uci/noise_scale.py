"""Effect of flatness on the noise scale of a Gaussian likelihood in regression.

A Gaussian likelihood fits its noise scale to the training residuals, and a sharpness-aware one to the residuals at
the
worst point of the ball, which are larger. This script compares the noise scale of a plain and a flat MAP with their
test residuals, in units of the targets' standard deviation: on four splits of a data set with hardly any noise, and
of
one with much.

    FLATBAYES_DATA=... python -m studies.uci.noise_scale docs/results/uci-noise-scale.json
"""

import sys
from pathlib import Path
from statistics import fmean

from flatbayes.core.files import write_json
from flatbayes.data import UCI
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.likelihoods import GaussianPredictive
from flatbayes.posteriors import MAP
from flatbayes.prediction import evaluate
from flatbayes.training import fit
from studies.uci.study import CANDIDATES, FINAL_VAL_SIZE, MODEL, make_config

NUM_SPLITS = 4


def measure_noise(name: str, flatness: Flatness, split: int) -> dict[str, float]:
    """Noise scale, test residuals and NLL of one training."""
    data = UCI(name=name, val_size=FINAL_VAL_SIZE).load(split)
    config = CANDIDATES["MAP"][0].apply_overrides(make_config(len(data.train) + len(data.val)))
    fitted = fit(MODEL, data, MAP(), flatness, config, seed=split, show_progress=False)
    predictive = fitted.predict(data.test.inputs, 1)
    assert isinstance(predictive, GaussianPredictive)
    unit = float(data.train.targets.std())
    return {
        "noise": float(predictive.member_stds.mean()) / unit,
        "test_residual": float((predictive.mean - data.test.targets).std()) / unit,
        "nll": evaluate(fitted, data.test.inputs, data.test.targets, 1).metrics["nll"],
    }


def main(out: Path) -> None:
    """Write means over splits."""
    rows = []
    for name in ("energy", "wine-quality-red"):
        for flatness in (Plain(), SAM(rho=0.003), SAM(rho=0.03)):
            runs = [measure_noise(name, flatness, split) for split in range(NUM_SPLITS)]
            rows.append({"data": name, "rho": getattr(flatness, "rho", 0.0)})
            rows[-1] |= {key: fmean(run[key] for run in runs) for key in runs[0]}
            print(rows[-1], flush=True)
    write_json(out, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
