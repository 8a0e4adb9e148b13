# %% Inputs of a kind never seen: a network learns five digits, and is shown the other five
from statistics import fmean

from flatbayes import MLP, SAM, SWAG, Ensemble, Plain, Recipe, fit
from flatbayes.data import ClassSplit, Digits
from flatbayes.prediction import evaluate_ood

split = ClassSplit(source=Digits(), classes=(0, 1, 2, 3, 4), train_size=200)
outside = split.outside().tensor
SEEDS = range(3)
SCORES = ("entropy", "mutual_information", "one_minus_confidence")


def detection(posterior, flatness):
    """AUROC of each score as a detector of unknown digits: 0.5 is guessing, 1 is never wrong. One entry a seed."""
    found = []
    for seed in SEEDS:
        data = split.load(seed)
        fitted = fit(MLP, data, posterior, flatness, Recipe(epochs=25), seed=seed)
        scores = evaluate_ood(fitted, data.test.tensor, outside, num_draws=20)["scores"]
        found.append({name: scores[name]["auroc"] for name in SCORES})
    return found


# %% Entropy is all uncertainty; mutual information is what the networks disagree on
for posterior in (SWAG(rank=5), Ensemble(size=3)):
    for flatness in (Plain(), SAM(rho=0.2)):
        found = detection(posterior, flatness)
        means = ", ".join(f"{name} {fmean(row[name] for row in found):.3f}" for name in SCORES)
        print(f"{type(posterior).__name__}, {flatness}: AUROC by {means}")

# %% How much of a difference is luck? Before believing one, look at it seed by seed, or let `flatbayes compare` do so:
# flatbayes compare --data digits --outside NAME --diagnose --out runs/outside
plain, flat = (detection(Ensemble(size=3), flatness) for flatness in (Plain(), SAM(rho=0.2)))
differences = [b["entropy"] - a["entropy"] for a, b in zip(plain, flat, strict=True)]
print("flat - plain of each seed:", ", ".join(f"{difference:+.3f}" for difference in differences))
