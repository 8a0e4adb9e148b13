"""Networks of a posterior frozen into one module: one call, and mean and uncertainty are there.

Networks are called one after the other in a loop, because that is the form that `torch.export` can follow with a
batch of any size; through vmap the batch size becomes a constant.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatbayes.data import Standardize
from flatbayes.data.standardize import standardize_inputs
from flatbayes.posteriors.linearised import LinearisedNetwork
from flatbayes.posteriors.variational_network import find_variational_layers
from flatbayes.prediction.outputs import PredictiveSummary, SummaryTensors, make_summary

if TYPE_CHECKING:
    from flatbayes.prediction.fitted import FittedPosterior

NUM_PROBE_INPUTS = 8
"""Inputs on which a linearised network is compared with one of moved weights."""


class CompiledPosterior(nn.Module):
    """Inputs as the training data had them in, tensors by name out.

    It holds the weights of all its networks and no random numbers, so the same inputs always give the same answer.
    Keep it in eval mode, in which it is made.

    Args:
        preprocess: What inputs go through before the networks see them.
        networks: Networks with weights of their own.
        summary: Makes an answer out of their outputs.
        example: Two inputs, for the exporters; None where their shape is not known.

    Attributes:
        fields: Names of the tensors in an answer, in order.
    """

    def __init__(
        self,
        preprocess: nn.Module,
        networks: Sequence[nn.Module],
        summary: PredictiveSummary,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.prepare = preprocess
        self.networks = nn.ModuleList(networks)
        self.summary = summary
        self.example = example
        self.output_names = summary.output_names
        self.requires_grad_(False)
        self.eval()

    def forward(self, inputs: Tensor) -> SummaryTensors:
        """For classes `mean`, `entropy` and `mutual_information`; for numbers `mean`, `std` and `epistemic_std`."""
        ready = self.prepare(inputs)
        answer: SummaryTensors = self.summary([network(ready) for network in self.networks])
        return answer


class InputPreprocessor(nn.Module):
    """What a fitted posterior does to inputs, with the statistics as buffers.

    Args:
        transform: The posterior's.
        dtype: Precision of the networks.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, transform: Callable[[Tensor], Tensor] | None, dtype: torch.dtype) -> None:
        super().__init__()
        scale = transform if isinstance(transform, Standardize) else None
        self.register_buffer("mean", None if scale is None else scale.mean.clone())
        self.register_buffer("std", None if scale is None else scale.std.clone())
        self.transform = transform if scale is None else None
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs as the networks take them."""
        if self.mean is not None and self.std is not None:
            inputs = standardize_inputs(inputs, self.mean, self.std)
        elif self.transform is not None:
            inputs = self.transform(inputs)
        return inputs.to(self.dtype) if inputs.is_floating_point() else inputs


def compile_posterior(fitted: "FittedPosterior", num_draws: int, seed: int) -> CompiledPosterior:
    """The networks of `predict(inputs, num_draws, seed=seed)` in one module.

    Raises:
        ValueError: No draws are asked for, or they are more than weights.
        TypeError: The likelihood is one of the user's own.
        RuntimeError: The posterior has nothing to draw from yet.
    """
    summary = make_summary(fitted.likelihood)
    networks = []
    for key in fitted.sample_ids(num_draws, seed):
        with fitted.sampled_network(key) as network:
            networks.append(_copy_fixed_network(fitted, network))
    _tie_equal_parameters(networks)
    prepare = InputPreprocessor(fitted.transform, fitted.dtype)
    return CompiledPosterior(prepare, networks, summary, make_example_inputs(fitted)).to(fitted.device)


def make_example_inputs(fitted: "FittedPosterior") -> Tensor | None:
    """Two inputs like those of the training, as far as shape and scale tell; None where the shape is not known."""
    shape = fitted.info.get("input_shape")
    if not shape:
        return None
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    scale = fitted.transform
    return scale.mean.cpu() + scale.std.cpu() * noise if isinstance(scale, Standardize) else noise


def _copy_fixed_network(fitted: "FittedPosterior", network: nn.Module) -> nn.Module:
    if any(module.training for module in network.modules()):
        raise ValueError(
            f"Draws of {type(fitted.posterior).__name__} are masks, new ones for each example of each call, and no "
            "fixed weights. Distil the posterior into one network instead: flatbayes.distill(fitted, model, inputs)."
        )
    if not isinstance(network, LinearisedNetwork):
        frozen = copy.deepcopy(network)
        for layer in find_variational_layers(frozen):
            layer.saved_means = None  # a draw within this one will never be asked for
        return frozen
    moved = copy.deepcopy(network.network)
    params = dict(moved.named_parameters())
    with torch.no_grad():
        for name, offset in network.offsets.items():
            params[name].add_(offset)
    if not _have_equal_outputs(network, moved, fitted.info.get("input_shape"), fitted.dtype):
        raise ValueError(
            "Draws of this Laplace posterior are linearised networks, which are more than weights unless they are "
            "linear in those that move (structure='last_layer', a network that ends in that layer, and data given as "
            "a Dataset). Fit with predictive='sampled', or distil it: flatbayes.distill(fitted, model, inputs)."
        )
    return moved


def _tie_equal_parameters(networks: Sequence[nn.Module]) -> None:
    """Let weights that are the same in all networks, such as those below a Bayesian last layer, take memory once."""
    first, *others = networks
    for name, param in list(first.named_parameters()):
        if all(torch.equal(param, network.get_parameter(name)) for network in others):
            owner, _, leaf = name.rpartition(".")
            for network in others:
                network.get_submodule(owner).register_parameter(leaf, param)


@torch.no_grad()
def _have_equal_outputs(
    expected_network: nn.Module, network: nn.Module, input_shape: Sequence[int] | None, dtype: torch.dtype
) -> bool:
    """Whether two networks agree on random inputs of this shape, if that is known, up to rounding."""
    if not input_shape:
        return False
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(NUM_PROBE_INPUTS, *input_shape, generator=generator).to(weight.device, dtype)
    expected: Tensor = expected_network(probes)
    found: Tensor = network(probes)
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())))
