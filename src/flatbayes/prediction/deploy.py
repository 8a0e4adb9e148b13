"""Compilation of a posterior into one deterministic `torch.nn.Module` that returns mean and uncertainty.

The networks are called in a loop, which `torch.export` can trace for a batch of any size; `torch.vmap` would turn the
batch size into a constant.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flatbayes.core.devices import move_tensor
from flatbayes.core.input_trees import cast_floating
from flatbayes.core.linear_head import extract_features
from flatbayes.core.networks import copy_network
from flatbayes.core.prediction_lock import lock_predictions
from flatbayes.core.randomness import Stream, make_generator, seeded_rng, spawn_seed
from flatbayes.data import Standardize
from flatbayes.data.standardize import standardize_inputs
from flatbayes.posteriors.linearised import LinearisedNetwork
from flatbayes.posteriors.variational_network import find_variational_layers
from flatbayes.prediction.example_inputs import get_floating_shape, make_example_inputs
from flatbayes.prediction.inputs import convert_integers
from flatbayes.prediction.outputs import CalibratedSummary, PredictiveSummary, SummaryTensors, make_summary
from flatbayes.prediction.sampling import NetworkSampler, SampleId
from flatbayes.prediction.varying_layer import StackedLayerNetwork, draw_layer, find_varying_layers

COPY_ADVICE = "A compiled posterior holds a copy of every drawn network: remove the attribute, or use predict."
NUM_PROBE_INPUTS = 8
"""Random inputs on which a linearised network is compared with a network whose weights were moved."""

FORWARD_SEED = spawn_seed(Stream.COMPILED_FORWARD)


class CompiledPosterior(nn.Module):
    """Networks of a posterior in one module: raw inputs in, tensors by name out.

    The module holds the weights of all its networks and draws no random numbers, so the same inputs always have the
    same result. It is created in eval mode and must stay in it.

    Args:
        preprocess: Applied to the raw inputs.
        networks: Networks, each with its own weights.
        summary: Computes the returned tensors from the outputs of the networks.
        example: Two raw inputs for the exporters; None where their shape is unknown.

    Attributes:
        output_names: Names of the returned tensors, in order.

    Examples:
        >>> compiled = fitted.compile(num_draws=5)
        >>> sorted(compiled(inputs[:4]))
        ['entropy', 'mean', 'mutual_information']
    """

    def __init__(
        self,
        preprocess: nn.Module,
        networks: Sequence[nn.Module],
        summary: PredictiveSummary,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.networks = nn.ModuleList(networks)
        self.summary = summary
        self.example = example
        self.output_names = summary.output_names
        self.requires_grad_(False)
        self.eval()

    def __repr__(self) -> str:
        names = sorted({type(network).__name__ for network in self.networks})
        return (
            f"<CompiledPosterior: {len(self.networks)} x {', '.join(names)}; outputs {', '.join(self.output_names)}>"
        )

    def forward(self, inputs: Tensor) -> SummaryTensors:
        """For classes `mean`, `entropy` and `mutual_information`; for numbers `mean`, `std` and `epistemic_std`."""
        if torch.compiler.is_compiling():
            return self._predict(inputs)
        check_tensor(inputs)
        with seeded_rng(FORWARD_SEED, self):  # of a network that uses random numbers in eval mode too
            return self._predict(inputs)

    def _predict(self, inputs: Tensor) -> SummaryTensors:
        preprocessed = self.preprocess(inputs)
        outputs: list[Tensor] = []
        for network in self.networks:
            network_outputs = network(preprocessed)
            outputs += network_outputs if isinstance(network, StackedLayerNetwork) else [network_outputs]
        predictions: SummaryTensors = self.summary(outputs)
        return predictions


def check_tensor(inputs: object) -> None:
    """Check that inputs of a compiled posterior are a tensor.

    Raises:
        TypeError: They are something else.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"A compiled posterior takes raw inputs as a tensor, [n, ...], got a {type(inputs).__name__}: pass "
            "torch.tensor(array), with the features of a table in the order of fitted.info['feature_names']."
        )


class InputPreprocessor(nn.Module):
    """`NetworkSampler.preprocess` as a module, with the mean and standard deviation of a Standardize as buffers.

    Args:
        transform: The transform of the posterior.
        dtype: Precision of the networks; None if they have several.
        device: Device of the networks: where it has no float64, the buffers are float32.
        trained_on: Entry `inputs` of the metadata, as for `convert_integers`.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        transform: Callable[[Tensor], Tensor] | None,
        dtype: torch.dtype | None,
        device: torch.device,
        trained_on: str | None = None,
    ) -> None:
        super().__init__()
        standardize = transform if isinstance(transform, Standardize) else None
        self.register_buffer("mean", None if standardize is None else move_tensor(standardize.mean, device).clone())
        self.register_buffer("std", None if standardize is None else move_tensor(standardize.std, device).clone())
        self.transform = transform if standardize is None else None
        self.dtype, self.trained_on = dtype, trained_on

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the transform and convert the precision."""
        if self.mean is not None and self.std is not None:
            inputs = standardize_inputs(inputs, self.mean, self.std)
        elif self.transform is not None:
            inputs = self.transform(inputs)
        outputs: Tensor = cast_floating(convert_integers(inputs, self.trained_on, self.dtype), self.dtype)
        return outputs


@lock_predictions()
def compile_posterior(sampler: NetworkSampler, num_draws: int, seed: int) -> CompiledPosterior:
    """Copy the networks of `predict(inputs, num_draws, seed=seed)` into one module.

    Raises:
        ValueError: `num_draws` is out of range, the draws are more than weights, or the likelihood has no moments.
        TypeError: The likelihood is user-defined.
        RuntimeError: The posterior has collected nothing to draw from yet.
    """
    if sampler.input_structure is not None:
        raise ValueError(
            "The network was trained on inputs that are not one tensor, and a compiled posterior takes one. Use "
            "fitted.predict, or sample_networks and torch.export for each network."
        )
    summary = make_summary(sampler.likelihood)
    if sampler.calibration is not None:
        summary = CalibratedSummary(summary, sampler.calibration)
    sample_ids = sampler.sample_ids(num_draws, seed)
    networks = _stack_last_layers(sampler, sample_ids)
    if not networks:
        for sample_id in sample_ids:
            with sampler.sampled_network(sample_id) as network:
                networks.append(_copy_fixed_network(sampler, network))
        _tie_equal_parameters(networks)
    preprocess = InputPreprocessor(sampler.transform, sampler.dtype, sampler.device, sampler.info.get("inputs"))
    return CompiledPosterior(preprocess, networks, summary, make_example_inputs(sampler)).to(sampler.device)


@torch.no_grad()
def _stack_last_layers(sampler: NetworkSampler, sample_ids: Sequence[SampleId]) -> list[nn.Module]:
    """One network for each run, with the outputs of all its draws; empty if these differ in more than a layer."""
    networks = list[nn.Module]()
    input_shape = get_floating_shape(sampler.info)
    for member, layer in enumerate(find_varying_layers(sampler) or ()):
        first_id = next(sample_id for sample_id in sample_ids if sample_id[1] == member)
        model = sampler.states[member].model
        with sampler.sampled_network(first_id) as first:
            copied = copy_network(model, advice=COPY_ADVICE)
            probes = _make_probes(copied, input_shape, sampler.dtype)
            with extract_features(model, layer) as extractor:
                if probes is None or extractor is None or extractor.compute(probes)[1] is None:
                    return []
            name = next(name for name, module in model.named_modules() if module is layer)
            stacked = StackedLayerNetwork(copied, name, draw_layer(sampler, member, layer, sample_ids)).eval()
            try:
                if not _are_close(first(probes), stacked(probes)[0]):
                    return []
            except RuntimeError:  # outputs are reshaped to a fixed number
                return []
        networks.append(stacked)
    return networks


def _copy_fixed_network(sampler: NetworkSampler, network: nn.Module) -> nn.Module:
    if any(module.training for module in network.modules()):
        raise ValueError(
            f"Draws of {type(sampler.posterior).__name__} are masks, new ones for each example of each call, and no "
            "fixed weights. Distil the posterior into one network instead: flatbayes.distill(fitted, model, inputs)."
        )
    if not isinstance(network, LinearisedNetwork):
        copied = copy_network(network, advice=COPY_ADVICE)
        for layer in find_variational_layers(copied):
            layer.discard_saved_means()  # the means are needed only for further draws
        return copied
    moved = copy_network(network.network, advice=COPY_ADVICE)
    params = dict(moved.named_parameters())
    with torch.no_grad():
        for name, offset in network.offsets.items():
            params[name].add_(offset)
    if not _have_equal_outputs(network, moved, get_floating_shape(sampler.info), sampler.dtype):
        raise ValueError(
            "Draws of this Laplace posterior are linearised networks, which are more than weights unless they are "
            "linear in those that move (structure='last_layer', a network that ends in that layer, and one "
            "tensor of numbers as inputs). Fit with predictive='sampled', or distil it: "
            "flatbayes.distill(fitted, model, inputs)."
        )
    return moved


def _tie_equal_parameters(networks: Sequence[nn.Module]) -> None:
    """Store parameters that are equal in all networks once, such as those below a Bayesian last layer."""
    first, *others = networks
    for name, param in list(first.named_parameters()):
        if all(torch.equal(param, network.get_parameter(name)) for network in others):
            owner, _, attribute = name.rpartition(".")
            for network in others:
                network.get_submodule(owner).register_parameter(attribute, param)


@torch.no_grad()
def _have_equal_outputs(
    expected_network: nn.Module, network: nn.Module, input_shape: Sequence[int] | None, dtype: torch.dtype | None
) -> bool:
    """Whether two networks agree up to rounding on random inputs of this shape; False if the shape is unknown."""
    probes = _make_probes(network, input_shape, dtype)
    return probes is not None and _are_close(expected_network(probes), network(probes))


def _make_probes(network: nn.Module, input_shape: Sequence[int] | None, dtype: torch.dtype | None) -> Tensor | None:
    """Random inputs of this shape; None if it is unknown."""
    if not input_shape:
        return None
    weight = next(network.parameters())
    generator = make_generator(Stream.EXPORT_PROBES)
    return torch.randn(NUM_PROBE_INPUTS, *input_shape, generator=generator).to(weight.device, dtype)


def _are_close(expected: Tensor, outputs: Tensor) -> bool:
    return outputs.shape == expected.shape and torch.allclose(
        outputs, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
