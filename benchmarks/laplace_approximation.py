"""Time of the Laplace approximation: fits of three structures, and predictions with 30 draws, against peers.

A fit is the curvature over all examples and what draws need of it; that of a last layer is measured with the peer's
factor of the covariance, which its first prediction computes. Ratios of fits are to the peer: laplace-torch, and
BackPACK for the diagonal. Ratios of predictions are to the features by one call of the network, all offsets by one
product, the outputs by one product, and the predictive distribution of flatbayes. Without the peers their rows are
left out.
"""

import importlib.util
from collections.abc import Callable

import torch
from timing import row, threads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.likelihoods import Categorical
from flatbayes.models import ConvNet
from flatbayes.posteriors import Laplace
from flatbayes.prediction import FittedPosterior
from prediction import mlp

NUM_DRAWS, BATCH_SIZE = 30, 128
PRIOR_PRECISION = 1.0


def make_mlp(num_classes: int) -> nn.Module:
    """Two hidden layers of 256 units."""
    return mlp(256, num_classes).eval()


def make_conv_net(num_classes: int) -> nn.Module:
    """Four convolutions on images of 32 x 32 pixels; 16 features."""
    return ConvNet((3, 32, 32), num_classes, width=8).eval()


def make_conv_layers(num_classes: int) -> nn.Module:
    """Layers that BackPACK and curvlinops support."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)),
    ).eval()


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "MLP 64-256-256": (make_mlp, (64,)),
    "ConvNet(8), 32 x 32": (make_conv_net, (3, 32, 32)),
    "4 convolutions, 32 x 32": (make_conv_layers, (3, 32, 32)),
}
FITS = (
    ("last_layer", "MLP 64-256-256", 10, 1000, 1.0),
    ("last_layer", "ConvNet(8), 32 x 32", 10, 256, 1.0),
    ("last_layer", "ConvNet(8), 32 x 32", 100, 256, 1.0),
    ("diag", "MLP 64-256-256", 10, 1000, 1.3),
    ("diag", "4 convolutions, 32 x 32", 10, 128, 1.3),
    ("kron", "4 convolutions, 32 x 32", 10, 128, 1.1),
    ("kron", "4 convolutions, 32 x 32", 100, 128, 1.1),
)
"""Structure, network, classes, examples, and largest ratio to the peer."""
PREDICTIONS = (("MLP 64-256-256", 1000), ("ConvNet(8), 32 x 32", 256))


def rows(quick: bool) -> list[dict]:
    """Fits and predictions on one thread."""
    torch.manual_seed(0)
    results = []
    with threads(1):
        for name, num_examples in PREDICTIONS:
            results += measure_predictions(name, 64 if quick else num_examples, 2 if quick else 9)
        for structure, name, num_classes, num_examples, target in FITS:
            rounds = 2 if quick else 7 if name.startswith("MLP") else 3
            results += measure_fit(structure, name, num_classes, 32 if quick else num_examples, target, rounds)
    return results


def make_examples(shape: tuple[int, ...], num_classes: int, num_examples: int) -> tuple[Tensor, Tensor]:
    """Random inputs and labels."""
    return torch.randn(num_examples, *shape), torch.randint(num_classes, (num_examples,))


def fit_state(posterior: Laplace, network: nn.Module, inputs: Tensor, labels: Tensor):
    """The state after the curvature is computed."""
    state = posterior.init(network, None, len(inputs))
    batches = zip(inputs.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    posterior.finalize(state, batches, F.cross_entropy)
    return state


def fit_peer(structure: str, network: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], object] | None:
    """The fit of the peer; None if it is not installed."""
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=BATCH_SIZE)
    if structure == "diag":
        return fit_backpack(network, loader) if importlib.util.find_spec("backpack") else None
    if not importlib.util.find_spec("laplace"):
        return None
    import laplace

    subset = "last_layer" if structure == "last_layer" else "all"

    def fit():
        peer = laplace.Laplace(
            network,
            "classification",
            subset_of_weights=subset,
            hessian_structure="full" if structure == "last_layer" else structure,
            prior_precision=PRIOR_PRECISION,
        )
        peer.fit(loader)
        if structure == "last_layer":
            _ = peer.posterior_scale
        return peer

    return fit


def fit_backpack(network: nn.Module, loader: DataLoader) -> Callable[[], object]:
    """The exact diagonal by BackPACK."""
    import copy

    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    extended, loss_fn = extend(copy.deepcopy(network)), extend(nn.CrossEntropyLoss(reduction="sum"))

    def fit():
        totals = [torch.zeros_like(param) for param in extended.parameters()]
        for inputs, labels in loader:
            with backpack(DiagGGNExact()):
                loss_fn(extended(inputs), labels).backward()
            for total, param in zip(totals, extended.parameters(), strict=True):
                total += param.diag_ggn_exact
                param.grad = None
        return totals

    return fit


def measure_fit(
    structure: str, name: str, num_classes: int, num_examples: int, target: float, rounds: int
) -> list[dict]:
    """The fit relative to that of the peer."""
    make, shape = NETWORKS[name]
    network, (inputs, labels) = make(num_classes), make_examples(shape, num_classes, num_examples)
    peer = fit_peer(structure, network, inputs, labels)
    if peer is None:
        return []
    posterior = Laplace(structure, prior_precision=PRIOR_PRECISION)
    return [
        row(
            "Laplace fit",
            f"{structure}, {name}, {num_classes} classes, {num_examples} examples",
            lambda: fit_state(posterior, network, inputs, labels),
            peer,
            rounds=rounds,
            target=target,
            note="to BackPACK" if structure == "diag" else "to laplace-torch",
        )
    ]


def measure_predictions(name: str, num_examples: int, rounds: int) -> list[dict]:
    """Predictions of the default, first ones and repeated ones, relative to those by hand."""
    make, shape = NETWORKS[name]
    network, (inputs, labels) = make(10), make_examples(shape, 10, num_examples)
    posterior, likelihood = Laplace(prior_precision=PRIOR_PRECISION), Categorical(10)
    fitted = FittedPosterior(posterior, [fit_state(posterior, network, inputs, labels)], likelihood)
    *trunk, layer = network if isinstance(network, nn.Sequential) else (network.features, network.classifier)
    extract = nn.Sequential(*trunk).eval()
    scale = torch.randn(layer.weight.numel() + layer.bias.numel(), layer.weight.numel() + layer.bias.numel()) / 1000

    @torch.no_grad()
    def compute_outputs(batches):
        noise = torch.randn(NUM_DRAWS, len(scale))
        offsets = noise @ scale.T
        weights = layer.weight + offsets[:, : layer.weight.numel()].view(NUM_DRAWS, *layer.weight.shape)
        biases = layer.bias + offsets[:, layer.weight.numel() :]
        outputs = [F.linear(extract(batch), weights.flatten(0, 1), biases.flatten()) for batch in batches]
        return torch.cat(outputs).view(-1, NUM_DRAWS, len(layer.bias)).transpose(0, 1)

    def predict_by_hand():
        return likelihood.predictive(compute_outputs(inputs.split(256)), keep_members=False)

    def predict_first():
        fresh = FittedPosterior(posterior, fitted.states, likelihood)
        return fresh.predict(inputs, NUM_DRAWS)

    @torch.no_grad()
    def forward():
        return [network(batch) for batch in inputs.split(256)]

    peers = {"forward": forward}
    if importlib.util.find_spec("laplace"):
        peer = fit_peer("last_layer", network, inputs, labels)()
        peers["laplace-torch"] = lambda: peer(inputs, pred_type="glm", link_approx="mc", n_samples=NUM_DRAWS)
    case = f"last_layer, {name}, {num_examples} examples"
    works = {"first": predict_first, "again": lambda: fitted.predict(inputs, NUM_DRAWS)}
    return [
        row(
            "Laplace prediction",
            f"{case}, {which}",
            work,
            predict_by_hand,
            rounds=rounds,
            peers=peers if which == "first" else None,
            target=1.2,
            note=f"{NUM_DRAWS} draws, to by hand",
        )
        for which, work in works.items()
    ]
