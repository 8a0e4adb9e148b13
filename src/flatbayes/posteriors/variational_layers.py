"""Linear and convolutional layers with Gaussian weights: local reparameterization and Flipout.

With independent Gaussian weights the activations are Gaussian. The local reparameterization (Kingma, Salimans &
Welling, NeurIPS 2015) samples the activations, independently for each example. Flipout (Wen et al., ICLR 2018) gives
each example its own weights by random signs. Both have less gradient variance than one weight sample for the whole
batch. Without `noise`, and in eval mode, a layer is its ordinary deterministic counterpart.
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
from torch.nn.modules.conv import _ConvNd

from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.tensor_lists import map_elementwise
from flatbayes.posteriors.variational import raw_to_std

NoiseEstimator = Literal["local", "flipout", "token_flipout"]
"""How the activations of a batch are sampled in training."""

LinearOperation = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs, weight, bias) -> activations, linear in weight and bias."""

MIN_VARIANCE = 1e-16
"""Added to variances of activations: the square root has no finite derivative at 0, the variance of zero inputs."""


@dataclass(frozen=True, eq=False)
class SoftplusScale:
    """Standard deviations of one parameter, computed once for all passes that use them.

    Attributes:
        raw: Values before the softplus; backward passes add gradients to `raw.grad`.
        std: Values after the softplus.
        slope: Derivative of the softplus.
        variance: The squares of `std`; None to compute them in every pass.
        variance_slope: Derivative of the variance in `raw`; None to multiply gradients by its factors.
    """

    raw: Tensor
    std: Tensor
    slope: Tensor
    variance: Tensor | None = None
    variance_slope: Tensor | None = None

    @staticmethod
    def from_raws(raws: Sequence[Tensor], estimator: "NoiseEstimator") -> list["SoftplusScale"]:
        """Compute the standard deviations of several parameters, on an accelerator in few kernels."""
        stds, slopes = map_elementwise(raw_to_std, raws), map_elementwise(torch.sigmoid, raws)
        if estimator != "local" or not any_on_accelerator(raws):
            return [SoftplusScale(*values) for values in zip(raws, stds, slopes, strict=True)]
        variances, variance_slopes = torch._foreach_mul(stds, stds), list(torch._foreach_mul(slopes, stds))
        torch._foreach_mul_(variance_slopes, 2.0)
        return [SoftplusScale(*values) for values in zip(raws, stds, slopes, variances, variance_slopes, strict=True)]

    def make_std_leaf(self, param: Tensor) -> Tensor:
        """Return standard deviations for one pass, with a gradient if the parameter has one."""
        return _make_leaf(self.std, self.raw, [self.slope]) if param.requires_grad else self.std

    def make_variance_leaf(self, param: Tensor) -> Tensor:
        """Return variances for one pass, with a gradient if the parameter has one."""
        variance = self.std.square() if self.variance is None else self.variance
        factors: list[Tensor | float] = [self.slope, self.std, 2.0]
        derivative = factors if self.variance_slope is None else [self.variance_slope]
        return _make_leaf(variance, self.raw, derivative) if param.requires_grad else variance


def _make_leaf(values: Tensor, raw: Tensor, derivative: Sequence[Tensor | float]) -> Tensor:
    """Return a leaf of the graph whose gradient, times the factors of the derivative, is added to `raw.grad`.

    Differentiating through the softplus itself would repeat it and its derivative in every pass, which costs as much
    as a small matrix product.
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
    """Noise of one layer in training.

    Standard deviations are None for a deterministic weight or bias.
    """

    estimator: NoiseEstimator
    weight: SoftplusScale | None
    bias: SoftplusScale | None


class VariationalLayer(nn.Module):
    """Base class of the layers: parameters are means, and noise can be set and removed.

    Attributes:
        noise: Noise to add in training mode; None for the deterministic layer.
        saved_means: Copies of the means by name while the parameters hold a draw; None outside draws.
    """

    noise: LayerNoise | None = None
    saved_means: Mapping[str, Tensor] | None = None

    def discard_saved_means(self) -> None:
        """Make the current values permanent, in a copy of the layer that was made within a draw."""
        self.saved_means = None

    def sample_activations(
        self, operation: LinearOperation, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return activations, sampled if the layer has noise and is in training mode."""
        noise = self.noise
        if noise is None or not self.training:
            return operation(inputs, weight, bias)
        weight_scale, bias_scale = noise.weight, None if bias is None else noise.bias
        # A closure may zero the gradients of the module only, without raw.grad, and a flatness runs it twice.
        raws = [scale.raw for scale in (noise.weight, noise.bias) if scale is not None]
        reset_zeroed_gradients([param for param in (weight, bias) if param is not None], raws)
        if noise.estimator == "local":
            weight_variance = None if weight_scale is None else weight_scale.make_variance_leaf(weight)
            bias_variance = None if bias_scale is None or bias is None else bias_scale.make_variance_leaf(bias)
            return local_activations(operation, inputs, weight, bias, weight_variance, bias_variance)
        weight_std = None if weight_scale is None else weight_scale.make_std_leaf(weight)
        bias_std = None if bias_scale is None or bias is None else bias_scale.make_std_leaf(bias)
        by_token = noise.estimator == "token_flipout" and weight.dim() == 2
        return flipout_activations(operation, inputs, weight, bias, weight_std, bias_std, by_token=by_token)


class VariationalLinear(VariationalLayer, nn.Linear):
    """`torch.nn.Linear` with noise."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations of the layer."""
        return self.sample_activations(F.linear, input, self.weight, self.bias)


class VariationalConv(VariationalLayer, _ConvNd):
    """A convolution with noise, over any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations of the layer."""
        return self.sample_activations(self._conv_forward, input, self.weight, self.bias)


class VariationalConv1d(VariationalConv, nn.Conv1d):
    """`torch.nn.Conv1d` with noise."""


class VariationalConv2d(VariationalConv, nn.Conv2d):
    """`torch.nn.Conv2d` with noise."""


class VariationalConv3d(VariationalConv, nn.Conv3d):
    """`torch.nn.Conv3d` with noise."""


VARIATIONAL_TYPES: dict[type[nn.Module], type[VariationalLayer]] = {
    nn.Linear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
    nn.Conv3d: VariationalConv3d,
}
"""Variational type by deterministic type: a subclass without state, so that the class of a layer can be replaced."""


def local_activations(
    operation: LinearOperation,
    inputs: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None,
    weight_variance: Float[Tensor, "..."] | None,
    bias_variance: Float[Tensor, "..."] | None,
) -> Float[Tensor, "..."]:
    """Return independently sampled activations: mean + sqrt(variance) noise, noise ~ N(0, 1).

    For x W + b the mean is that of the layer and the variance is x² std_W² + std_b²; likewise for a convolution. Each
    activation has the distribution that random weights give it. Examples, positions of a convolution and repeated
    uses of a layer become independent, which they are not with shared weights. A variance of None is zero.

    Source: Kingma, Salimans & Welling (NeurIPS 2015), equation 6.
    """
    mean = operation(inputs, weight, bias)
    weight_variance = torch.zeros_like(weight) if weight_variance is None else weight_variance
    with disable_autocast(inputs.device.type):  # squares and MIN_VARIANCE underflow in half precision
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
    *,
    by_token: bool = False,
) -> Float[Tensor, "..."]:
    """Return activations under one weight sample with random signs for each example.

    y = x W + b + ((x s) (std_W noise) + std_b noise) r, where s and r hold a random sign per example and input or
    output feature (channel). The weights of each example have the distribution of the sample, and those of two
    examples are uncorrelated. All positions of a convolution use the same signs. A standard deviation of None is
    zero. With `by_token` all positions of an example, such as the tokens of a sentence, have signs of their own.

    Source: Wen et al. (ICLR 2018), equations 3 and 4.
    """
    mean = operation(inputs, weight, bias)
    axis = 1 - weight.dim()  # of the features, counted from the end
    weight_noise = torch.zeros_like(weight) if weight_std is None else weight_std * torch.randn_like(weight_std)
    bias_noise = None if bias_std is None else (bias_std * torch.randn_like(bias_std)).to(weight.dtype)
    signed = inputs * draw_signs(inputs, axis, by_token=by_token)
    perturbed = operation(signed, weight_noise.to(weight.dtype), bias_noise)
    return torch.addcmul(mean, perturbed, draw_signs(mean, axis, by_token=by_token))


def draw_signs(like: Float[Tensor, "..."], axis: int, *, by_token: bool = False) -> Float[Tensor, "..."]:
    """Return random signs, one per example and feature, that broadcast to `like`.

    Args:
        like: A batch with examples along the first dimension; or one example, where that is the feature dimension.
        axis: Dimension of the features, counted from the end.
        by_token: Whether every entry has a sign.
    """
    shape = list(like.shape) if by_token else [1] * like.dim()
    shape[0], shape[axis] = like.shape[0], like.shape[axis]
    return torch.randint(0, 2, shape, dtype=like.dtype, device=like.device).mul_(2).sub_(1)


def disable_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context without autocast, which costs nothing if autocast is off."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def reset_zeroed_gradients(params: Sequence[Tensor], raws: Sequence[Tensor]) -> None:
    """Zero the gradients of raw standard deviations if those of all means are zero, without waiting for a device."""
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        for raw in raws:
            raw.grad = None
        return
    zeroed = torch.stack([grad.any() for grad in grads]).any().logical_not()
    for raw in raws:
        if raw.grad is not None:
            raw.grad.masked_fill_(zeroed, 0)
