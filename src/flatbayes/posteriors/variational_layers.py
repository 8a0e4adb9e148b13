"""Linear and convolution layers that compute with a Gaussian over their weights while they are trained.

Where weights are independent Gaussians, activations are Gaussian too. The local reparameterisation (Kingma, Salimans
& Welling, NeurIPS 2015) samples those, for each example anew, and Flipout (Wen et al., ICLR 2018) gives each example
weights of its own by random signs; both make gradients less noisy than one set of weights for the whole batch does.
Without `Noise`, and in eval mode, a layer is the ordinary one that it was.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.posteriors.variational import raw_to_std

NoiseEstimator = Literal["local", "flipout"]
"""How noise in the weights becomes noise in the activations of a batch."""

LinearOperation = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs, weight, bias) -> activations, linear in weight and bias."""

MIN_VARIANCE = 1e-16
"""Added to variances of activations: the square root has no finite derivative at 0, the variance of zero inputs."""


@dataclass(frozen=True, eq=False)
class SoftplusScale:
    """Standard deviations of one parameter, computed once for all passes that use them.

    Attributes:
        raw: Before the softplus; backward passes add gradients to its `.grad`.
        std: After it.
        slope: Derivative of the softplus.
    """

    raw: Tensor
    std: Tensor
    slope: Tensor

    @staticmethod
    def from_raw(raw: Tensor) -> "SoftplusScale":
        """The standard deviations that the raw ones have now."""
        return SoftplusScale(raw, raw_to_std(raw), raw.sigmoid())

    def make_std_leaf(self, param: Tensor) -> Tensor:
        """Standard deviations for one pass, which have a gradient if the parameter has one."""
        return _make_leaf(self.std, self.raw, [self.slope]) if param.requires_grad else self.std

    def make_variance_leaf(self, param: Tensor) -> Tensor:
        """Variances for one pass, which have a gradient if the parameter has one."""
        variance = self.std.square()
        return _make_leaf(variance, self.raw, [self.slope, self.std, 2.0]) if param.requires_grad else variance


def _make_leaf(values: Tensor, raw: Tensor, derivative: Sequence[Tensor | float]) -> Tensor:
    """A leaf of the graph, the gradient of which goes to `raw`, times the factors of the derivative.

    Through the softplus itself, passes would repeat it and its derivative, at the cost of a small matrix product.
    """
    leaf = values.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(partial(_accumulate_raw_gradient, raw, derivative))
    return leaf


def _accumulate_raw_gradient(raw: Tensor, derivative: Sequence[Tensor | float], leaf: Tensor) -> None:
    if leaf.grad is not None:
        for factor in derivative:
            leaf.grad.mul_(factor)
        raw.grad = leaf.grad if raw.grad is None else raw.grad.add_(leaf.grad)
        leaf.grad = None


@dataclass(frozen=True, eq=False)
class LayerNoise:
    """Spread of one layer's parameters, and what becomes of it.

    Attributes:
        estimator: How activations are sampled.
        weight: Standard deviations of the weight; None for a deterministic weight.
        bias: The same of the bias.
    """

    estimator: NoiseEstimator
    weight: SoftplusScale | None
    bias: SoftplusScale | None


class VariationalLayer(nn.Module):
    """What the layers share: parameters that are means, and noise that comes and goes.

    Attributes:
        noise: What to add in training mode; None for the ordinary layer.
        saved_means: Copies of the means by name while the parameters hold a draw; None outside draws.
    """

    noise: LayerNoise | None = None
    saved_means: Mapping[str, Tensor] | None = None

    def sample_activations(
        self, operation: LinearOperation, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Activations, sampled where there is noise."""
        noise = self.noise
        if noise is None or not self.training:
            return operation(inputs, weight, bias)
        scales = (noise.weight, noise.bias)
        # A closure that zeroes the module's gradients alone means these too, and a flat one does so twice.
        reset_zeroed_gradients([p for p in (weight, bias) if p is not None], [s.raw for s in scales if s is not None])
        learnt = ((scale, param) for scale, param in zip(scales, (weight, bias), strict=True))
        if noise.estimator == "local":
            variances = (None if s is None or p is None else s.make_variance_leaf(p) for s, p in learnt)
            return local_activations(operation, inputs, weight, bias, *variances)
        stds = (None if s is None or p is None else s.make_std_leaf(p) for s, p in learnt)
        return flipout_activations(operation, inputs, weight, bias, *stds)


class VariationalLinear(VariationalLayer, nn.Linear):
    """`torch.nn.Linear` with noise."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations of the layer."""
        return self.sample_activations(F.linear, input, self.weight, self.bias)


class VariationalConv1d(VariationalLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with noise."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations of the layer."""
        return self.sample_activations(self._conv_forward, input, self.weight, self.bias)


class VariationalConv2d(VariationalLayer, nn.Conv2d):
    """`torch.nn.Conv2d` with noise."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations of the layer."""
        return self.sample_activations(self._conv_forward, input, self.weight, self.bias)


class VariationalConv3d(VariationalLayer, nn.Conv3d):
    """`torch.nn.Conv3d` with noise."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations of the layer."""
        return self.sample_activations(self._conv_forward, input, self.weight, self.bias)


VARIATIONAL_TYPES: dict[type[nn.Module], type[VariationalLayer]] = {
    nn.Linear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
    nn.Conv3d: VariationalConv3d,
}
"""The variational twin of a layer: a subclass without state of its own, so that a layer can become its twin."""


def local_activations(
    operation: LinearOperation,
    inputs: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None,
    weight_variance: Float[Tensor, "..."] | None,
    bias_variance: Float[Tensor, "..."] | None,
) -> Float[Tensor, "..."]:
    """A sample of every activation on its own: mean + sqrt(variance) noise, noise ~ N(0, 1).

    For x W + b the mean is that of the layer and the variance is x² std_W² + std_b²; a convolution likewise. Each
    activation has exactly the distribution that random weights give it, but examples, the positions of a convolution
    and several uses of one layer become independent, which with shared weights they are not.

    Source: Kingma, Salimans & Welling (NeurIPS 2015), equation 6.

    Args:
        operation: What the layer computes.
        inputs: Inputs of the layer.
        weight: Means of the weight.
        bias: Means of the bias.
        weight_variance: Variances of the weight; None for zero.
        bias_variance: Variances of the bias; None for zero.
    """
    mean = operation(inputs, weight, bias)
    weight_variance = torch.zeros_like(weight) if weight_variance is None else weight_variance
    with disable_autocast(inputs.device.type):  # half precision holds neither squares nor the floor
        squares = inputs.to(weight_variance.dtype).square()
        std = operation(squares, weight_variance, bias_variance).add_(MIN_VARIANCE).sqrt_()
        return torch.addcmul(mean, std, torch.randn_like(std)).to(mean.dtype)


def flipout_activations(
    operation: LinearOperation,
    inputs: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None,
    weight_std: Float[Tensor, "..."] | None,
    bias_std: Float[Tensor, "..."] | None,
) -> Float[Tensor, "..."]:
    """Activations under one sample of the weights, with signs of its own for each example.

    y = x W + b + ((x s) (std_W noise) + std_b noise) r, where s and r hold a random sign per example and input or
    output feature (channel). The weights that an example meets have the distribution of the sample; those of two
    examples are uncorrelated. The positions of a convolution share them.

    Source: Wen et al. (ICLR 2018), equations 3 and 4.

    Args:
        operation: What the layer computes.
        inputs: Inputs of the layer, examples along the first dimension.
        weight: Means of the weight.
        bias: Means of the bias.
        weight_std: Standard deviations of the weight; None for zero.
        bias_std: Standard deviations of the bias; None for zero.
    """
    mean = operation(inputs, weight, bias)
    axis = 1 - weight.dim()  # of the features, from the end
    weight_noise = torch.zeros_like(weight) if weight_std is None else weight_std * torch.randn_like(weight_std)
    bias_noise = None if bias_std is None else bias_std * torch.randn_like(bias_std)
    perturbed = operation(inputs * draw_signs(inputs, axis), weight_noise, bias_noise)
    return torch.addcmul(mean, perturbed, draw_signs(mean, axis))


def draw_signs(like: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
    """Random signs, one per example and feature, to multiply with `like`.

    Args:
        like: A batch, examples along the first dimension; or one example, whose features are there.
        axis: Dimension of the features, counted from the end.
    """
    shape = [1] * like.dim()
    shape[0], shape[axis] = like.shape[0], like.shape[axis]
    return torch.randint(0, 2, shape, dtype=like.dtype, device=like.device).mul_(2).sub_(1)


def disable_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which autocast is off, at no cost where it is off anyway."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def reset_zeroed_gradients(params: Sequence[Tensor], raws: Sequence[Tensor]) -> None:
    """Zero gradients of raw standard deviations where those of all means are, without waiting for a device.

    Args:
        params: The means, whose gradients have not been accumulated, or may have been zeroed since.
        raws: Standard deviations before the softplus.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        for raw in raws:
            raw.grad = None
        return
    zeroed = torch.stack([grad.any() for grad in grads]).any().logical_not()
    for raw in raws:
        if raw.grad is not None:
            raw.grad.masked_fill_(zeroed, 0)
