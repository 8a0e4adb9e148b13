"""Generalised Gauss-Newton matrix (GGN; Schraudolph, Neural Computation 2002): exact diagonal and exact matrix.

The GGN of the summed loss is the sum over examples of Jᵀ H J, with J the Jacobian of an example's outputs in the
weights and H the Hessian of its loss in the outputs. It is the Hessian of the loss of the linearised network, without
the curvature of the network itself; for a softmax it is the Fisher information. With H = S Sᵀ it is a sum of outer
products of the vectors Jᵀ s, one for each column s of S. Each vector needs one backward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap

from flatbayes.core import LossFn
from flatbayes.core.devices import to_double
from flatbayes.core.input_trees import ModelInputs, map_tensors, split_examples
from flatbayes.core.network_calls import call_with_tensors, plain_attention
from flatbayes.core.tensor_lists import widen
from flatbayes.core.weights import promoted_dtype

MAX_VECTOR_ENTRIES = 2**24
"""Largest number of entries of all vectors Jᵀ s in memory at a time: 64 MB in single precision."""


def factorize_loss_hessian(
    outputs: Float[Tensor, "batch ..."], targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, "batch outputs columns"]:
    """Return S with S Sᵀ = H, the Hessian of each example's loss in its outputs, for any loss.

    Negative eigenvalues of H, which occur if the loss is not convex in the outputs, are set to zero: a Gaussian has
    no variance for a direction of negative curvature. Columns that are zero are left out, such as one for a softmax.
    Trailing dimensions of outputs are flattened; no example's loss may depend on another example's outputs.
    """
    rows = list(_iter_hessian_rows(outputs, targets, loss_fn))
    if not rows:
        return outputs.new_zeros(len(outputs), outputs[0].numel(), 1)
    return factorize_psd(torch.stack(rows, 1))


def sum_loss_hessians(
    outputs: Float[Tensor, "batch outputs"], targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, "outputs outputs"]:
    """Return the sum over examples of the Hessians of `factorize_loss_hessian`, for a convex loss.

    It takes no factorization of each, which for hundreds of outputs takes most of the time.
    """
    rows = [row.sum(0) for row in _iter_hessian_rows(outputs, targets, loss_fn)]
    return torch.stack(rows) if rows else outputs.new_zeros(outputs.shape[1], outputs.shape[1])


def _iter_hessian_rows(
    outputs: Float[Tensor, "batch ..."], targets: Tensor, loss_fn: LossFn
) -> Iterator[Float[Tensor, "batch outputs"]]:
    """Yield the rows of the Hessians of all examples, first all first ones; none if the loss is linear."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        total = loss_fn(leaf, targets) * len(leaf)
        shape = (len(leaf), -1)
        slopes = torch.autograd.grad(total, leaf, create_graph=True)[0].reshape(shape)
        for slope in slopes.unbind(1) if slopes.requires_grad else ():
            yield torch.autograd.grad(slope.sum(), leaf, retain_graph=True, materialize_grads=True)[0].reshape(shape)


def factorize_psd(matrices: Float[Tensor, "batch size size"]) -> Float[Tensor, "batch size columns"]:
    """Return S with S Sᵀ = H for symmetric positive semidefinite matrices H, up to rounding in double precision.

    S is the Cholesky factor where it exists. Elsewhere it is that of an eigendecomposition, which takes ten times as
    long, without the negative eigenvalues.

    Returns:
        The factors, without the columns that are zero up to rounding for all matrices; at least one column.

    Raises:
        RuntimeError: A matrix is not finite.
    """
    check_finite_curvature(matrices)
    exact = to_double(matrices)
    exact = (exact + exact.mT) / 2
    # A semidefinite matrix has a Cholesky factor in exact arithmetic, and after rounding if it is slightly shifted.
    size = matrices.shape[-1]
    rounding = size * torch.finfo(exact.dtype).eps * exact.diagonal(dim1=1, dim2=2).amax(1).clamp(min=0)
    shifted = exact.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(rounding[:, None])
    factors, errors = torch.linalg.cholesky_ex(shifted)
    is_indefinite = errors != 0
    if is_indefinite.any():
        values, vectors = decompose_psd(exact[is_indefinite])
        factors[is_indefinite] = vectors * values.sqrt()[:, None, :]
    is_zero = (factors.square().amax(1) <= 10 * rounding[:, None]).all(0)
    is_zero[0] = False
    nonzero: Tensor = factors[:, :, ~is_zero].to(matrices)
    return nonzero


def decompose_psd(
    matrix: Float[Tensor, "*batch size size"],
) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size size"]]:
    """Compute the eigendecomposition of symmetric positive semidefinite matrices, in double precision.

    With few examples most eigenvalues are zero, and in single precision the algorithm then fails occasionally.
    Asymmetry and negative eigenvalues from rounding are removed.

    Returns:
        Eigenvalues, at least zero; and eigenvectors as columns.

    Raises:
        RuntimeError: A matrix is not finite.
    """
    check_finite_curvature(matrix)
    exact = to_double(matrix)
    exact = (exact + exact.mT) / 2
    try:
        values, vectors = torch.linalg.eigh(exact)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # slower, but converges
        vectors, values, _ = torch.linalg.svd(exact)
    return values.clamp(min=0).to(matrix), vectors.to(matrix)


def check_finite_curvature(curvature: Tensor) -> None:
    """Refuse values that are not finite.

    Raises:
        RuntimeError: There are some.
    """
    if not curvature.isfinite().all():
        raise RuntimeError(
            "The curvature of the loss is not finite at the weights after training: the outputs of the network, or "
            "their derivatives, overflow, since the training has diverged. Try a lower learning rate, a smaller rho, "
            "or clipping (--optimization.clip_norm 1)."
        )


@dataclass(frozen=True, eq=False)
class ExampleVjps:
    """Computes Jᵀ s for every example and each of its directions s: the gradient of sᵀ f(x) in the parameters.

    `torch.vmap` has no rule for some operations (RReLU, `Tensor.item`) and a wrong one for others (the gradient of
    PReLU, whose axes it confuses for some sizes). Its result is therefore compared with a backward pass over the
    whole batch, once for each shape of directions, and replaced by that of a loop over the examples where it fails or
    differs.

    Attributes:
        model: The network in eval mode; no example's outputs depend on another example.
        params: Parameters in which derivatives are taken, by name.
        vmap_is_right: Whether the result of `torch.vmap` is right, by shape of the directions.
    """

    model: nn.Module
    params: Mapping[str, Tensor]
    vmap_is_right: dict[torch.Size, bool] = field(default_factory=dict)

    @torch.no_grad()
    def compute(
        self, inputs: ModelInputs, directions: Float[Tensor, "batch outputs columns"]
    ) -> Float[Tensor, "batch columns params"]:
        """Return the vectors of a batch, for several directions in the space of the outputs for each example.

        Raises:
            ValueError: The outputs do not depend on any of the parameters.
        """
        shape = directions.shape
        with plain_attention():
            if self.vmap_is_right.get(shape, True):
                try:
                    vjps = self.compute_by_vmap(inputs, directions)
                except (RuntimeError, NotImplementedError, ValueError):  # the last one for graphs
                    self.vmap_is_right[shape] = False
                else:
                    if shape not in self.vmap_is_right:
                        self.vmap_is_right[shape] = self._agrees_with_backward(vjps, inputs, directions)
                    if self.vmap_is_right[shape]:
                        return vjps
            return self.compute_by_loop(inputs, directions)

    def compute_by_vmap(
        self, inputs: ModelInputs, directions: Float[Tensor, "batch outputs columns"]
    ) -> Float[Tensor, "batch columns params"]:
        """Return the vectors by `torch.vmap`."""
        constants, values = self._detach_parameters()  # torch.func would differentiate in the other parameters too

        def project_outputs(values: dict[str, Tensor], example: ModelInputs, direction: Tensor) -> Tensor:
            batch = map_tensors(lambda tensor: tensor[None], example)
            outputs = call_with_tensors(self.model, constants | values, batch)
            return outputs.flatten() @ direction

        # Dropout that is active in eval mode has one mask for each example.
        column_vjps = vmap(grad(project_outputs), in_dims=(None, None, 0), randomness="same")
        vjps = vmap(column_vjps, in_dims=(None, 0, 0), randomness="different")(values, inputs, directions.mT)
        return torch.cat([vjps[name][..., None].flatten(2) for name in self.params], 2)  # a parameter may be a scalar

    def compute_by_loop(
        self, inputs: ModelInputs, directions: Float[Tensor, "batch outputs columns"]
    ) -> Float[Tensor, "batch columns params"]:
        """Return the vectors by a backward pass for each."""
        vjps = [
            self._differentiate_outputs(example, columns)[1]
            for example, columns in zip(split_examples(inputs, 1), directions.split(1), strict=True)
        ]
        return torch.stack(vjps)

    def _agrees_with_backward(
        self,
        vjps: Float[Tensor, "batch columns params"],
        inputs: ModelInputs,
        directions: Float[Tensor, "batch outputs columns"],
    ) -> bool:
        """Compare a combination of the vectors with a backward pass; True if the network is random in eval mode."""
        # A random combination of all vectors, which is right by chance only if all of them are right.
        weights = torch.arange(1, 1 + directions[:, 0].numel()).cos().to(directions).view_as(directions[:, 0])
        combined = torch.einsum("boc,bc->bo", directions, weights)[:, :, None]
        outputs, (expected,) = self._differentiate_outputs(inputs, combined)
        weighted = weights[:, :, None].to(vjps) * vjps
        tolerance = rounding_tolerance(directions, *self.params.values())
        if (weighted.sum((0, 1)) - expected).norm() <= tolerance * weighted.norm():
            return True
        return not torch.equal(outputs, self.model(inputs))  # dropout that is active in eval mode

    def _differentiate_outputs(
        self, inputs: ModelInputs, directions: Float[Tensor, "batch outputs columns"]
    ) -> tuple[Tensor, Float[Tensor, "columns params"]]:
        """Return the outputs of a batch, and for each column the gradient of its product with them."""
        constants, values = self._detach_parameters()
        leaves = [value.requires_grad_() for value in values.values()]
        with torch.enable_grad():
            outputs = call_with_tensors(self.model, constants | values, inputs)
            if not outputs.requires_grad:
                raise ValueError(
                    f"The outputs of {type(self.model).__name__} do not depend on {', '.join(self.params)}, and "
                    "Laplace needs the curvature in these parameters. structure='last_layer' takes the last "
                    "torch.nn.Linear in order of registration: remove a layer that is not used, or register it "
                    "first; or use structure='diag'."
                )
        # The gradient of an embedding may be sparse.
        vjps = iter_vjps(outputs, leaves, directions)
        vectors = [torch.cat([g.to_dense().flatten() for g in gradients]) for gradients in vjps]
        return outputs.detach(), torch.stack(vectors)

    def _detach_parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return all parameters of the model, and those in which derivatives are taken, without their graph."""
        constants = {name: param.detach() for name, param in self.model.named_parameters()}
        return constants, {name: param.detach() for name, param in self.params.items()}


def iter_vjps(
    outputs: Tensor, tensors: Sequence[Tensor], directions: Float[Tensor, "batch outputs columns"]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield for each column s the gradients of its product with the outputs of a batch, by one backward pass.

    The gradient in a tensor that is not used is zero.
    """
    for column in directions.unbind(2):
        yield torch.autograd.grad(
            outputs, tensors, column.reshape(outputs.shape), retain_graph=True, materialize_grads=True
        )


def ggn_diagonal(
    vjps: ExampleVjps, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn
) -> Float[Tensor, " params"]:
    """Return the exact diagonal of the GGN of the summed loss of a batch, the sum of the squares of all Jᵀ s."""
    total = allocate_zeros(vjps.params, count_weights(vjps.params))
    for vectors in iter_ggn_vectors(vjps, inputs, targets, loss_fn):
        total += vectors.square().sum(0)
    return total


@torch.no_grad()
def iter_ggn_vectors(
    vjps: ExampleVjps, inputs: ModelInputs, targets: Tensor, loss_fn: LossFn
) -> Iterator[Float[Tensor, "vectors params"]]:
    """Yield the vectors Jᵀ s of all examples and columns in bounded chunks; arguments as for `ggn_diagonal`."""
    with plain_attention():
        outputs = vjps.model(inputs)
    factor = factorize_loss_hessian(outputs, targets, loss_fn)
    size = count_weights(vjps.params)
    num_columns = max(1, min(factor.shape[2], MAX_VECTOR_ENTRIES // size))
    num_examples = max(1, MAX_VECTOR_ENTRIES // (size * num_columns))
    for input_chunk, factor_chunk in zip(
        split_examples(inputs, num_examples), factor.split(num_examples), strict=True
    ):
        for directions in factor_chunk.split(num_columns, dim=2):
            yield vjps.compute(input_chunk, directions).flatten(0, 1)


def rounding_tolerance(*tensors: Tensor) -> float:
    """Return the relative difference that rounding can cause: four times the root of the largest epsilon."""
    return float(4 * max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()) ** 0.5)


def count_weights(params: Mapping[str, Tensor]) -> int:
    """Return the number of entries of all parameters together."""
    return sum(param.numel() for param in params.values())


def allocate_zeros(params: Mapping[str, Tensor], *shape: int) -> Tensor:
    """Return zeros on the device of the parameters, in the dtype of sums of their values."""
    return next(iter(params.values())).new_zeros(shape, dtype=widen(promoted_dtype(params.values())))
