"""Checks of second derivatives where the device's fused kernels have none: recurrent networks and attention.

cuDNN's recurrent kernels can be differentiated neither twice nor in eval mode, and fused attention not twice. The
products of the Hessian must agree with those of the CPU in float64, whichever way they are computed.
"""

import copy
from collections.abc import Iterator

import torch
from gpu_cases import make_config
from gpu_report import Row
from gpu_runner import Context
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes import SAM, SWAG, Categorical, Laplace, ViT, fit
from flatbayes.core.weights import trainable_parameters
from flatbayes.diagnostics import HessianVectorProduct, LossSurface, largest_eigenvalues

MAX_PRODUCT_ERROR = 1e-2
"""Relative error of a product: central differences in float32 have about 1e-3."""
NUM_CLASSES = 3


class RecurrentNetwork(nn.Module):
    """An LSTM over a sequence of vectors, and a linear layer on its last state."""

    def __init__(self, features: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, NUM_CLASSES)

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits, shape [n, classes], of sequences [n, steps, features]."""
        return self.head(self.lstm(sequences)[0][:, -1])


def check_recurrent_network(context: Context) -> Iterator[Row]:
    """Hessian products, training, and a Laplace approximation of an LSTM."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(48, 7, 4), torch.arange(48) % NUM_CLASSES
    yield from compare_products(RecurrentNetwork(), inputs, targets, context.device)
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    for name, posterior in {"SWAG": SWAG(rank=2), "Laplace": Laplace("diag", "sampled", tune="evidence")}.items():
        config = make_config(context.device, optimizer=None, num_validations=0)
        arguments = {"likelihood": Categorical(NUM_CLASSES), "num_data": len(inputs), "show_progress": False}
        fitted = fit(RecurrentNetwork, batches, posterior, SAM(), config, **arguments)
        entropy = fitted.predict(inputs, 3).entropy
        yield {name: {"mean_entropy": float(entropy.mean())}}
        if not entropy.isfinite().all():
            raise AssertionError(f"Predictions of {name} on an LSTM are not finite.")


def check_attention(context: Context) -> Iterator[Row]:
    """Hessian products of a vision transformer."""
    torch.manual_seed(0)
    model = ViT((3, 8, 8), NUM_CLASSES, patch=4, dim=16, depth=2, heads=2)
    inputs, targets = torch.randn(16, 3, 8, 8), torch.arange(16) % NUM_CLASSES
    yield from compare_products(model, inputs, targets, context.device)


def compare_products(model: nn.Module, inputs: Tensor, targets: Tensor, device: str) -> Iterator[Row]:
    """Compare products with one direction, and the largest eigenvalue, with those of the CPU in float64.

    Raises:
        AssertionError: They differ.
    """
    direction = [torch.randn_like(param) for param in trainable_parameters(model)]
    exact = make_product(copy.deepcopy(model).double(), inputs.double(), targets)
    product = make_product(model.to(device), inputs.to(device), targets.to(device))
    expected = torch.cat([t.flatten() for t in exact([d.double() for d in direction])])
    values = torch.cat([t.detach().flatten() for t in product([d.to(device) for d in direction])]).double().cpu()
    error = float((values - expected).norm() / expected.norm())
    yield {"method": product.method, "product_error": error, "summary": f"{product.method}; error {error:.1e}"}
    if error > MAX_PRODUCT_ERROR:
        raise AssertionError(f"A product of the Hessian differs by {error:.1e} from the CPU's ({product.method}).")
    eigenvalues = [largest_eigenvalues(hvp, 1)[0] for hvp in (exact, product)]
    yield {"largest_eigenvalue": dict(zip(("cpu", "device"), eigenvalues, strict=True))}
    if abs(eigenvalues[1] - eigenvalues[0]) > 10 * MAX_PRODUCT_ERROR * abs(eigenvalues[0]):
        raise AssertionError(f"The largest eigenvalue is {eigenvalues[1]:.4g}, on the CPU {eigenvalues[0]:.4g}.")


def make_product(model: nn.Module, inputs: Tensor, targets: Tensor) -> HessianVectorProduct:
    """The product of a network's Hessian on one batch."""
    return HessianVectorProduct(LossSurface(model, F.cross_entropy, [(inputs, targets)]))
