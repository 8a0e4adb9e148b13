"""Fitted posteriors of trainings in other libraries, and the join of several into an ensemble."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from flatbayes.core import State
from flatbayes.core.adapters import share_frozen_parameters
from flatbayes.core.batch_targets import split_batch
from flatbayes.core.buffers import find_updated_buffers, norm_layers
from flatbayes.core.input_trees import move_batch
from flatbayes.core.networks import copy_network
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.flatness import Flatness
from flatbayes.integrations.tracker import TrainingTracker
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import MAP, Ensemble, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.config import TrainingConfig
from flatbayes.training.identity import describe_name
from flatbayes.training.label_shift import check_label_shift
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.trial import NetworkWarning

NUM_CHECKED_TARGETS = 16
"""Examples of a training loader whose targets are compared with the likelihood."""


def make_fitted_posterior(
    tracker: TrainingTracker,
    likelihood: Likelihood,
    *,
    flatness: Flatness,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    statistics_inputs: Sequence[Tensor] = (),
    loader: Any = None,
    info: Mapping[str, Any] | None = None,
) -> FittedPosterior:
    """The posterior at the current step of a tracker, independent of later training.

    Parameters that are not trained are shared with the network; the others are copied. A Laplace approximation
    computes its curvature here.

    `wrap` makes a network that takes the inputs alone and returns outputs; None is for one that does so itself.
    `statistics_inputs` are batches of training inputs, to re-estimate BatchNorm statistics of draws; without any they
    are read from the loader. That gives batches of (inputs, targets), or dictionaries with labels, that the network
    takes as they are; None is the loader of training, in order.

    Raises:
        RuntimeError: Too few snapshots have been collected, and training goes on or has done all of its steps.
        ValueError: Training examples are needed, and the batches are not of this form; or the outputs of the network
            are not those that the likelihood takes.
        TypeError: The likelihood is no instance.
    """
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood must be an instance such as Categorical(10) or Gaussian(), got {likelihood!r}.")
    posterior = tracker.config.posterior
    if tracker.lacks_snapshots():
        if not tracker.stopped_early():
            raise RuntimeError(f"{tracker.explain_missing_snapshots()} Train longer, or lower start_fraction.")
        posterior = MAP()
        warnings.warn(
            f"{tracker.explain_missing_snapshots()} The fitted posterior is MAP, the trained network alone.",
            stacklevel=3,
        )
    if posterior is tracker.config.posterior and tracker.has_other_weights():
        warnings.warn(
            "The weights of the network have been changed since the end of training, as by loading a checkpoint, and "
            f"the statistics of {describe_name(posterior)} are those of the end. Load both: with transformers by "
            "load_best_model_at_end=True, with Lightning by trainer.validate(ckpt_path=...), from a checkpoint that "
            "has the state of callbacks.",
            stacklevel=3,
        )
    state = copy_state(tracker, posterior, wrap)
    data = LoaderData(make_ordered_loader(tracker.loader) if loader is None else loader, likelihood=likelihood)
    device = next(state.model.parameters()).device
    with seeded_rng(spawn_seed(Stream.FINALIZATION, tracker.progress.seed), state.model):
        example = read_example(data.loader, device, transform)
        outputs = None if example is None else compute_example_outputs(state.model, example[0])
        if example is not None and outputs is not None:
            likelihood.check_outputs(outputs)
            check_label_shift(likelihood, *example, lambda: state.model)
            check_targets(likelihood, data.loader)
        posterior.finalize(state, data.iter_examples(device), likelihood.loss)
        needs_inputs = posterior.needs_norm_reestimation and norm_layers(state.model, state.updated_buffers)
        if needs_inputs and not statistics_inputs and transform is None and data.loader is not None:
            try:
                statistics_inputs = data.sample_inputs(TrainingConfig(), 0)
            except ValueError:  # the batches are not pairs; a prediction says that inputs are needed
                statistics_inputs = ()
    training = {"flatness": describe_name(flatness), "steps": tracker.progress.step}
    info = {"training": training, **(info or {})}
    return FittedPosterior(posterior, [state], likelihood, transform, list(statistics_inputs), info)


def copy_state(
    tracker: TrainingTracker, posterior: Posterior, wrap: Callable[[nn.Module], nn.Module] | None
) -> State:
    """A state with a copy of the network, in its wrapper, and of the statistics."""
    source, posterior_params = tracker.steps.state, tracker.select_posterior_params()
    network = source.model
    shared = {id(param): param for param in network.parameters() if not param.requires_grad}
    network_copy = copy_network(
        network,
        dict[int, Any](shared),
        advice="The posterior is a copy of the network. Remove the attribute first.",
    )
    for name, param in network_copy.named_parameters():
        if id(param) not in shared:
            param.requires_grad_(name in posterior_params)
            param.grad = None
    updated_buffers = source.updated_buffers
    if updated_buffers is None:  # in the first epoch
        updated_buffers = find_updated_buffers(network, tracker.epoch_buffers)
    updated_ids = {id(buffer) for name, buffer in network_copy.named_buffers() if name in updated_buffers}
    model = (network_copy if wrap is None else wrap(network_copy)).eval()
    names = frozenset(name for name, buffer in model.named_buffers() if id(buffer) in updated_ids)
    state = posterior.init(model, None, source.num_data)
    # Names of statistics may contain names of parameters, which the wrapper changes; their order is the same.
    values = dict(zip(state.statistics, source.statistics.values(), strict=True)) if state.statistics else {}
    statistics = {name: tensor.detach().clone() for name, tensor in values.items()}
    state.load_state_dict({"model": state.model.state_dict(), "optimizer": None, "statistics": statistics})
    state.model.eval()
    state.updated_buffers = names
    return state


def read_example(
    loader: Any, device: torch.device, transform: Callable[[Tensor], Tensor] | None = None
) -> tuple[Any, Tensor] | None:
    """Inputs and targets of the first example of a loader, with a batch axis.

    Returns:
        None for other loaders, and for batches that are no pairs.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    try:
        inputs, targets = move_batch(split_batch(loader.collate_fn([loader.dataset[0]])), device)
        return (inputs if transform is None else transform(inputs)), targets
    except Exception:  # of the code of the user; a prediction says what is wrong
        return None


def check_targets(likelihood: Likelihood, loader: Any) -> None:
    """Warn if the first targets of a loader are not those of the likelihood, so that the network had another loss.

    The network was trained with the loss of the user, which may use a part of the targets.
    """
    try:
        examples = [loader.dataset[index] for index in range(min(NUM_CHECKED_TARGETS, len(loader.dataset)))]
        _, targets = split_batch(loader.collate_fn(examples))
    except Exception:  # of the code of the user, as in `read_example`
        return
    try:
        likelihood.prepare_targets(targets.cpu())
    except ValueError as error:
        warnings.warn(
            f"The targets of the training loader are not valid for {likelihood!r}. If the training used them, its "
            f"predictions mean something else than those of this likelihood. {error}",
            NetworkWarning,
            stacklevel=4,
        )


@torch.no_grad()
def compute_example_outputs(model: nn.Module, inputs: Any) -> Tensor | None:
    """Outputs of a network for an example; None where it does not take its inputs, or returns no tensor."""
    try:
        outputs = model(inputs)
    except Exception:  # of the code of the user; a prediction says what is wrong
        return None
    return outputs if isinstance(outputs, Tensor) else None


def make_ordered_loader(loader: Any) -> Any:
    """A loader of the same examples in order, all of them in every process; the same one if it has its own order."""
    plain_samplers = (SequentialSampler, RandomSampler, DistributedSampler)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    if not isinstance(loader.sampler, plain_samplers):  # it may select examples
        return loader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return DataLoader(loader.dataset, batch_size or 32, collate_fn=loader.collate_fn)


def join_posteriors(fitted_posteriors: Sequence[FittedPosterior]) -> FittedPosterior:
    """An ensemble of posteriors that were trained one by one, from different initial weights.

    Args:
        fitted_posteriors: Posteriors of the same kind, over networks of the same form, with the same likelihood.

    Returns:
        The posterior `Ensemble(member, size)`, whose members have the same weight.

    Raises:
        ValueError: There are none, they differ in more than their weights, or one has a calibration.

    Examples:
        >>> from torch import nn
        >>> from flatbayes import MAP, Categorical, FittedPosterior
        >>> def fit_member():
        ...     state = MAP().init(nn.Linear(4, 3), None, num_data=1)
        ...     return FittedPosterior(MAP(), [state], Categorical(3))
        >>> join_posteriors([fit_member(), fit_member()]).posterior
        Ensemble(member=MAP(prior_precision=None), size=2)
    """
    if not fitted_posteriors:
        raise ValueError("There are no posteriors to join.")
    first = fitted_posteriors[0]
    if any(fitted.calibration is not None for fitted in fitted_posteriors):
        raise ValueError(
            "A calibration was fitted to the predictions of a member, not to those of the ensemble. Join posteriors "
            "without one (flatbayes.prediction.replace_calibration(fitted, None)), and calibrate the ensemble."
        )
    for name in ("posterior", "likelihood"):
        values = [getattr(fitted, name) for fitted in fitted_posteriors]
        if len({(type(value), repr(vars(value))) for value in values}) > 1:  # a repr leaves out long fields
            kinds = sorted({repr(value) for value in values})
            raise ValueError(f"Members of an ensemble have the same {name}, got {', '.join(kinds)}.")
    if any(fitted.transform is not first.transform for fitted in fitted_posteriors):
        raise ValueError("Members of an ensemble have the same transform of the inputs: pass one object to all.")
    shapes = [
        {name: tensor.shape for name, tensor in state.model.state_dict().items()}
        for fitted in fitted_posteriors
        for state in fitted.states
    ]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("Members of an ensemble are networks of the same form, and the names or shapes differ.")
    states = [state for fitted in fitted_posteriors for state in fitted.states]
    share_frozen_parameters([state.model for state in states])
    posterior = Ensemble(first.posterior, len(fitted_posteriors))
    return FittedPosterior(
        posterior, states, first.likelihood, first.transform, first.statistics_inputs, dict(first.info)
    )
