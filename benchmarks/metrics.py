"""Metrics and predictive distributions against minimal versions written by hand, which check nothing.

By hand, probabilities are float32 and whole matrices. The peer, torchmetrics, has accuracy and calibration error; the
other metrics of its row are by hand too. Memory is the peak during the computation with the probabilities themselves,
in units of these, from torch's profiler.
"""

import math

import torch
from memory import get_peak_bytes
from sklearn.metrics import roc_auc_score
from timing import make_row, row, threads
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from flatbayes.likelihoods import Categorical, mixture
from flatbayes.metrics import adaptive_ece, classification_metrics, classwise_ece, crps, fit_temperature
from flatbayes.prediction import evaluate
from prediction import fitted, mlp, plain

NUM_BINS = 20


def rows(quick: bool) -> list[dict]:
    """Metrics, their memory, the mean over networks, and a whole evaluation."""
    torch.manual_seed(0)
    size = (300, 50) if quick else (30_000, 1000)
    rounds = 1 if quick else 5
    log_probs, labels = make_predictions(*size)
    probs = log_probs.exp()
    small = (log_probs[:100], labels[:100]) if quick else (log_probs[:3000], labels[:3000])
    cases = {
        "all of classification_metrics": (
            lambda: classification_metrics(log_probs, labels),
            lambda: compute_by_hand(log_probs, labels),
            {"torchmetrics": lambda: compute_with_torchmetrics(log_probs, labels)},
        ),
        "adaptive_ece": (lambda: adaptive_ece(probs, labels), lambda: adaptive_ece_by_hand(probs, labels), {}),
        "classwise_ece": (lambda: classwise_ece(probs, labels), lambda: classwise_ece_by_hand(probs, labels), {}),
        "fit_temperature, a tenth of the examples": (
            lambda: fit_temperature(*small, prior_examples=0),
            lambda: fit_temperature_by_hand(*small),
            {},
        ),
    }
    with threads(1):
        results = [
            row("metrics", name, ours, by_hand, peers=peers, rounds=rounds, target=2.0, note=f"{size[0]} x {size[1]}")
            for name, (ours, by_hand, peers) in cases.items()
        ]
        results += [make_memory_row(name, works, log_probs) for name, works in cases.items() if "tenth" not in name]
        return results + regression_rows(quick, rounds) + predictive_rows(quick, rounds)


def make_memory_row(case: str, works, values: Tensor) -> dict:
    """Peak memory with the probabilities, in units of the probabilities."""
    ours, by_hand, peers = works

    def measure(work) -> float:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            work()
        return 1 + get_peak_bytes(recorded) / values.nbytes

    return make_row(
        "memory",
        case,
        measure(ours),
        limit=1.0,
        target=1.5,
        peers={name: measure(work) for name, work in {"by hand": by_hand, **peers}.items()},
        note="in probabilities",
    )


def make_predictions(num_examples: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Log probabilities in float32 of a classifier that is right for two thirds of the examples."""
    labels = torch.randint(num_classes, (num_examples,))
    logits = torch.randn(num_examples, num_classes)
    logits[torch.arange(num_examples), labels] += 4
    return logits.log_softmax(-1), labels


def compute_by_hand(log_probs: Tensor, labels: Tensor) -> list[float]:
    """Accuracy, NLL, ECE, Brier score, and AUROC of right predictions."""
    probs = log_probs.exp()
    confidence, top = probs.max(-1)
    right = top == labels
    bins = (confidence * NUM_BINS).ceil().long() - 1
    gaps = torch.bincount(bins, weights=confidence - right.float(), minlength=NUM_BINS)
    label_probs = probs.gather(1, labels[:, None]).squeeze(1)
    return [
        float(right.float().mean()),
        -float(log_probs.gather(1, labels[:, None]).mean()),
        float(gaps.abs().sum() / len(labels)),
        float((probs.square().sum(-1) - 2 * label_probs + 1).mean()),
        float(roc_auc_score(right.numpy(), confidence.numpy())),
    ]


def compute_with_torchmetrics(log_probs: Tensor, labels: Tensor) -> list[float]:
    """The same with accuracy and calibration error of torchmetrics."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    probs, num_classes = log_probs.exp(), log_probs.shape[1]
    confidence, top = probs.max(-1)
    label_probs = probs.gather(1, labels[:, None]).squeeze(1)
    return [
        float(multiclass_accuracy(probs, labels, num_classes, average="micro")),
        float(F.nll_loss(log_probs, labels)),
        float(multiclass_calibration_error(probs, labels, num_classes, NUM_BINS)),
        float((probs.square().sum(-1) - 2 * label_probs + 1).mean()),
        float(roc_auc_score((top == labels).numpy(), confidence.numpy())),
    ]


def adaptive_ece_by_hand(probs: Tensor, labels: Tensor) -> float:
    """Calibration error over bins of equal mass, without averages over ties."""
    confidence, top = probs.max(-1)
    gaps = (top == labels).float() - confidence
    return sum(abs(float(part.sum())) for part in gaps[confidence.argsort()].tensor_split(NUM_BINS)) / len(labels)


def classwise_ece_by_hand(probs: Tensor, labels: Tensor) -> float:
    """Mean calibration error of the classes, one class at a time."""
    total = 0.0
    for k in range(probs.shape[1]):
        column = probs[:, k]
        bins = ((column * NUM_BINS).ceil().long() - 1).clamp_min(0)
        total += float(torch.bincount(bins, weights=column - (labels == k).float(), minlength=NUM_BINS).abs().sum())
    return total / probs.numel()


def fit_temperature_by_hand(log_probs: Tensor, labels: Tensor) -> float:
    """Temperature by L-BFGS in float32, the usual method."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], lr=1.0, max_iter=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(log_probs / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_temperature.detach().exp())


def regression_rows(quick: bool, rounds: int) -> list[dict]:
    """CRPS and quantiles of mixtures of 30 normal distributions."""
    num_examples = 100 if quick else 5000
    means = torch.randn(30, num_examples, dtype=torch.float64)
    stds = torch.rand(30, num_examples, dtype=torch.float64) + 0.1
    targets = torch.randn(num_examples, dtype=torch.float64)

    def folded(mean: Tensor, std: Tensor) -> Tensor:
        z = mean / std
        return mean * torch.erf(z / math.sqrt(2)) + std * math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()

    def crps_by_hand() -> float:
        score = folded(targets - means, stds).mean(0)
        for mean, std in zip(means, stds, strict=True):
            score = score - folded(mean - means, (std.square() + stds.square()).sqrt()).mean(0) / 60
        return float(score.mean())

    def quantile_by_hand() -> Tensor:
        low, high = (means - 9 * stds).amin(0), (means + 9 * stds).amax(0)
        for _ in range(60):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - means) / stds).mean(0) < 0.025
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    note = f"{num_examples} examples, 30 networks"
    return [
        row("regression", "crps", lambda: crps(means, stds, targets), crps_by_hand, note=note, rounds=rounds),
        row(
            "regression",
            "quantile, against a bisection",
            lambda: mixture.mixture_quantile(0.025, means, stds),
            quantile_by_hand,
            note=note,
            rounds=rounds,
        ),
    ]


def predictive_rows(quick: bool, rounds: int) -> list[dict]:
    """Mean over networks, and an evaluation in units of its forward passes."""
    results = []
    sizes = ((100, 50, 3),) if quick else ((10_000, 1000, 3), (1000, 10, 30))
    for num_examples, num_classes, count in sizes:
        outputs = [3 * torch.randn(num_examples, num_classes) for _ in range(count)]
        results.append(
            row(
                "predictive",
                f"{count} networks, {num_examples} x {num_classes}, against the mean of softmax",
                lambda outputs=outputs: Categorical(outputs[0].shape[1]).predictive(iter(outputs)),
                lambda outputs=outputs: torch.stack([logits.softmax(-1) for logits in outputs]).mean(0),
                peers={"by hand with entropies and variance": lambda outputs=outputs: predict_by_hand(outputs)},
                rounds=rounds,
                target=3.0 if num_classes >= 1000 else None,
            )
        )
    num_examples, num_classes, draws = (50, 20, 2) if quick else (2000, 1000, 10)
    posterior = fitted(lambda: mlp(256, num_classes), (64,))
    posterior.likelihood = Categorical(num_classes)
    inputs, labels = torch.randn(num_examples, 64), torch.randint(num_classes, (num_examples,))
    results.append(
        row(
            "evaluate",
            f"MLP 64-256-256-{num_classes}, {draws} draws, in forward passes",
            lambda: evaluate(posterior, inputs, labels, draws),
            plain(posterior, inputs.split(256), draws),
            rounds=rounds,
            target=2.3,
            note=f"{num_examples} examples",
        )
    )
    return results


def predict_by_hand(outputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Mean, entropies and variance of the probabilities, in float32."""
    probs = torch.stack([logits.softmax(-1) for logits in outputs])
    mean = probs.mean(0)
    return mean, torch.special.entr(mean).sum(-1), torch.special.entr(probs).sum(-1).mean(0), probs.var(0)
