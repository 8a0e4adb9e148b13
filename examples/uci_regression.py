# %% A regression in the standard splits of the UCI sets, or on bundled data where those are not at hand
import os
from functools import partial
from pathlib import Path

from flatbayes import MLP, SAM, SWAG, UCI, Diabetes, Ensemble, Plain, TrainingConfig, evaluate, fit
from flatbayes.training import OptimizationConfig

folder = Path(os.environ.get("FLATBAYES_DATA", ".")) / "uci" / "concrete"
source = UCI(name="concrete") if folder.is_dir() else Diabetes()
print("UCI concrete" if folder.is_dir() else "No UCI data in FLATBAYES_DATA: scikit-learn's diabetes data instead")

# %% The protocol's network, with one learnt noise scale; on a UCI set the seed is the number of the split
network = partial(MLP, hidden=(50,), constant_scale=True)
recipe = TrainingConfig(epochs=30, optimization=OptimizationConfig(clip_norm=1.0))
data = source.load(seed=0)
for posterior in (SWAG(rank=10), Ensemble(size=3)):
    for name, flatness in {"plain": Plain(), "flat": SAM(rho=0.003)}.items():  # a small radius, or none
        fitted = fit(network, data, posterior, flatness, recipe)
        metrics = evaluate(fitted, data.test.inputs, data.test.targets, num_draws=30).metrics
        shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("nll", "rmse", "crps", "coverage_95"))
        print(f"{type(posterior).__name__}, {name}: {shown}")

# %% Where the uncertainty comes from: noise that stays, and networks that more data would bring together
predictive = fitted.predict(data.test.inputs, num_draws=30)
lower, upper = predictive.interval(0.95)
print(f"first test example: {predictive.mean[0]:.1f}, 95 % between {lower[0]:.1f} and {upper[0]:.1f}")
print(f"mean variance: noise {predictive.aleatoric.mean():.1f}, networks {predictive.epistemic.mean():.1f}")

# %% One split decides nothing. All twenty, with every choice made inside each, are on the page of results, where flat
# ties or loses. On your machine: flatbayes compare --data uci --data.name concrete --seeds 20 --out runs/concrete
