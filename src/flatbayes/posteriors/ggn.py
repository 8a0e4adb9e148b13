"""Curvature of the loss: the generalised Gauss-Newton matrix (GGN; Schraudolph, Neural Computation 2002).

The GGN of the sum of the losses of all examples is the sum of Jᵀ H J, with J the Jacobian of an example's outputs in
the weights and H the Hessian of its loss in the outputs. It is the Hessian of the loss of the linearised network, and
so leaves out the curvature of the network itself; for a softmax it is the Fisher information. With H = S Sᵀ it is a
sum of outer products of the vectors Jᵀ s, one for each column s of S, which need a backward pass each.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flatbayes.core import LossFn

MAX_VECTOR_ENTRIES = 2**24
"""Bound on the entries of all vectors Jᵀ s held at a time, 64 MB in single precision."""


def factorize_loss_hessian(
    outputs: Float[Tensor, "batch ..."], targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, "batch outputs columns"]:
    """S with S Sᵀ = H, the Hessian of each example's loss in its outputs, whatever the loss.

    Negative eigenvalues of H, which a loss that is not convex in the outputs has, are set to zero: a direction in
    which the loss bends down tells a Gaussian nothing.

    Args:
        outputs: Of the network, for one batch; trailing dimensions are flattened.
        targets: Of the same examples.
        loss_fn: The mean of the losses of a batch, none of which depends on other examples' outputs.
    """
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        total = loss_fn(leaf, targets) * len(leaf)
        slopes = torch.autograd.grad(total, leaf, create_graph=True)[0].flatten(1)
        if not slopes.requires_grad:  # linear in the outputs
            return slopes.new_zeros(*slopes.shape, slopes.shape[1])
        rows = [
            torch.autograd.grad(slope.sum(), leaf, retain_graph=True, materialize_grads=True)[0].flatten(1)
            for slope in slopes.unbind(1)
        ]
    hessians = torch.stack(rows, 1).detach()
    values, vectors = decompose_psd(hessians)
    factor: Tensor = vectors * values.sqrt()[:, None, :]
    return factor


def decompose_psd(
    matrix: Float[Tensor, "*batch size size"],
) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size size"]]:
    """Eigenvalues, none below zero, and eigenvectors as columns, of symmetric positive semidefinite matrices.

    In double precision: few examples leave most eigenvalues at zero, and in single precision the algorithm then
    fails now and again.

    Args:
        matrix: The matrices; what rounding has made asymmetric or negative is mended.
    """
    exact = (matrix.cpu() if matrix.device.type == "mps" else matrix).double()  # which mps does not have
    exact = (exact + exact.mT) / 2
    try:
        values, vectors = torch.linalg.eigh(exact)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # then the slower one
        vectors, values, _ = torch.linalg.svd(exact)
    return values.clamp(min=0).to(matrix), vectors.to(matrix)


def ggn_diagonal(
    model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, " params"]:
    """Diagonal of the GGN of the sum of the losses of a batch, the sum of the squares of all Jᵀ s; exact.

    Args:
        model: The network in eval mode, one example's outputs independent of the others.
        params: Its parameters to take derivatives in, by name.
        inputs: One batch.
        targets: Of the same examples.
        loss_fn: The mean of the losses of a batch.
    """
    size = sum(param.numel() for param in params.values())
    total = next(iter(params.values())).new_zeros(size)
    for vectors in iter_ggn_vectors(model, params, inputs, targets, loss_fn):
        total += vectors.square().sum(0)
    return total


def ggn_matrix(
    model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, "params params"]:
    """The whole GGN of the sum of the losses of a batch; arguments as of `ggn_diagonal`."""
    size = sum(param.numel() for param in params.values())
    total = next(iter(params.values())).new_zeros(size, size)
    for vectors in iter_ggn_vectors(model, params, inputs, targets, loss_fn):
        total.addmm_(vectors.T, vectors)
    return total


@torch.no_grad()
def iter_ggn_vectors(
    model: nn.Module, params: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss_fn: LossFn
) -> Iterator[Float[Tensor, "vectors params"]]:
    """The vectors Jᵀ s of all examples and columns, in pieces of bounded size; arguments as of `ggn_diagonal`."""
    factor = factorize_loss_hessian(model(inputs), targets, loss_fn)
    size = sum(param.numel() for param in params.values())
    columns = max(1, min(factor.shape[2], MAX_VECTOR_ENTRIES // size))
    examples = max(1, MAX_VECTOR_ENTRIES // (size * columns))
    for some_inputs, some_factor in zip(inputs.split(examples), factor.split(examples), strict=True):
        for directions in some_factor.split(columns, dim=2):
            yield compute_example_vjps(model, params, some_inputs, directions).flatten(0, 1)


def compute_example_vjps(
    model: nn.Module,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    directions: Float[Tensor, "batch outputs columns"],
) -> Float[Tensor, "batch columns params"]:
    """Jᵀ s for every example and each of its directions s: the gradient of sᵀ f(x) in the parameters.

    Args:
        model: The network in eval mode.
        params: Its parameters to take derivatives in, by name.
        inputs: One batch.
        directions: For each example some vectors of the size of its outputs.
    """
    # Inside torch.func gradients are on, and parameters of no interest would be followed too.
    constants = {name: param.detach() for name, param in model.named_parameters()}

    def project_outputs(values: dict[str, Tensor], example: Tensor, direction: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, constants | values, (example[None],))
        return outputs.flatten() @ direction

    of_columns = vmap(grad(project_outputs), in_dims=(None, None, 0))
    found = vmap(of_columns, in_dims=(None, 0, 0))(
        {name: param.detach() for name, param in params.items()}, inputs, directions.mT
    )
    return torch.cat([found[name].flatten(2) for name in params], 2)
