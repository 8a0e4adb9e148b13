# %% Regression on a standard split of a UCI data set, or on bundled data if there is none
import os
from functools import partial
from pathlib import Path

from flatbayes import MLP, SAM, SWAG, UCI, Diabetes, Ensemble, Plain, TrainingConfig, evaluate, fit
from flatbayes.training import OptimizationConfig

folder = Path(os.environ.get("FLATBAYES_DATA", ".")) / "uci" / "concrete"
source = UCI(name="concrete") if folder.is_dir() else Diabetes()
print("UCI concrete" if folder.is_dir() else "No UCI data in FLATBAYES_DATA: scikit-learn's diabetes data instead")

# %% The network of the protocol, with one trained noise scale; for UCI data the seed is the number of the split
network = partial(MLP, hidden=(50,), constant_scale=True)
config = TrainingConfig(epochs=30, optimization=OptimizationConfig(clip_norm=1.0))
data = source.load(seed=0)
for posterior in (SWAG(rank=10), Ensemble(size=3)):
    for name, flatness in {"plain": Plain(), "flat": SAM(rho=0.003)}.items():  # plain, and a small radius
        fitted = fit(network, data, posterior, flatness, config)
        metrics = evaluate(fitted, data.test, num_draws=30).metrics
        text = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("nll", "rmse", "crps", "coverage_95"))
        print(f"{type(posterior).__name__}, {name}: {text}")

# %% Aleatoric uncertainty (noise) and epistemic uncertainty (spread over networks)
predictive = fitted.predict(data.test.inputs, num_draws=30)
lower, upper = predictive.interval(0.95)
print(f"first test example: {predictive.mean[0]:.1f}, 95 % between {lower[0]:.1f} and {upper[0]:.1f}")
print(f"mean variance: noise {predictive.aleatoric.mean():.1f}, networks {predictive.epistemic.mean():.1f}")

# %% A single split is no evidence. The results page has all twenty splits, with selection inside each; flat ties or
# loses
# there. To run them: flatbayes compare --data uci --data.name concrete --num_seeds 20 --out runs/concrete
