# %% Out-of-distribution detection: a network is trained on five digits and evaluated on the other five
from statistics import fmean

from flatbayes import MLP, SAM, SWAG, Ensemble, Plain, TrainingConfig, fit
from flatbayes.data import ClassSplit, Digits
from flatbayes.prediction import evaluate_ood

source = ClassSplit(source=Digits(), classes=(0, 1, 2, 3, 4), train_size=200)
ood_inputs = source.read_ood().input_tensor
SCORES = ("entropy", "mutual_information", "one_minus_confidence")


def compute_auroc(posterior, flatness, seed):
    """AUROC of each score as a detector of unknown digits: 0.5 is chance level, 1 is perfect."""
    data = source.load(seed)
    fitted = fit(MLP, data, posterior, flatness, TrainingConfig(epochs=25), seed=seed)
    scores = evaluate_ood(fitted, data.test.input_tensor, ood_inputs, num_draws=20).scores
    return {name: scores[name].auroc for name in SCORES}


# %% Entropy measures total uncertainty; mutual information measures the disagreement of the networks
for posterior in (SWAG(rank=5), Ensemble(size=3)):
    plain, flat = ([compute_auroc(posterior, flatness, k) for k in range(3)] for flatness in (Plain(), SAM(rho=0.2)))
    for score in SCORES:
        plain_mean, flat_mean = (fmean(row[score] for row in rows) for rows in (plain, flat))
        differences = ", ".join(f"{f[score] - p[score]:+.3f}" for p, f in zip(plain, flat, strict=True))
        name = type(posterior).__name__
        print(f"{name}, {score}: plain {plain_mean:.3f}, flat {flat_mean:.3f} (differences: {differences})")

# %% With three seeds and a radius that was not tuned, this is a demonstration and no evidence for flatness
# With a strong weight decay in plain training, the flat network can be the worse detector (see the results page).
# On your data: flatbayes compare --data DATA --ood OTHER --out runs/ood
