"""Trial of a fit before its first step: everything that happens later happens once, with a network of its own.

Torch reports an operation that it does not support when it runs. Without a trial, that is after hours of training if
it is in the last pass over the data, in a draw or in a prediction.
"""

import dis
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core import LossFn, TrainingProgress, subset_batch
from flatbayes.core.buffers import set_training_mode
from flatbayes.core.input_trees import ModelInputs, flatten_tree, move_batch, slice_examples
from flatbayes.core.networks import shared_dtype
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.likelihoods import Bernoulli, Categorical, Custom, DenseCategorical, Likelihood
from flatbayes.prediction import FittedPosterior
from flatbayes.training.closure import clip_closure
from flatbayes.training.engine import Engine, place_module
from flatbayes.training.fabric import Fabric
from flatbayes.training.loop import convert_inputs
from flatbayes.training.run_factory import RunFactory, make_training_loss

MAX_SUM_ERROR = 1e-3
"""Largest relative deviation, by rounding, of a loss from twice another."""
MAX_PROBABILITY_ERROR = 1e-3
"""Largest distance of a sum of probabilities from 1."""
MIXED_EXAMPLES = (
    "The outputs of the network for one example depend on the other examples of its batch, also in eval mode, so "
    "that predictions change with the batch. The network has recurrent or attention layers that take the time on the "
    "first axis: set batch_first=True, or move that axis before and after them."
)
MAX_MIXING = 0.05
"""Largest change of an output, relative to all outputs, that rounding may cause where an example is alone."""
NUM_TRIAL_SNAPSHOTS = 3
TRIAL_LEARNING_RATE = 1e-9
"""The trial stays at the initial weights, where training cannot diverge; the fit's optimizer takes no step."""
PASSED_ON = (OSError, MemoryError, torch.OutOfMemoryError)
"""Errors that say nothing about the network."""


class NetworkWarning(UserWarning):
    """The network can be trained, but its outputs are probabilities, or its weights lose small updates."""


@torch.enable_grad()
def run_trial(factory: RunFactory, fabric: Fabric) -> None:
    """Take a step on a few examples, collect snapshots, finalize, draw and predict, and discard the network.

    There is no trial for several processes, whose gradients and weights belong together.

    Raises:
        ValueError: Network, data, posterior and flatness do not go together, or gradients are impossible here.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Tensors have no gradients within torch.inference_mode(), so nothing can be trained there. Call fit "
            "outside of it, or within torch.inference_mode(False)."
        )
    if fabric.world_size > 1:
        return
    stage, network, logits, low_precisions = "the first step", None, list[object](), set[torch.dtype]()
    is_mixed = False
    try:
        with seeded_rng(spawn_seed(Stream.MODEL_CHECK, factory.seed), None), warnings.catch_warnings(action="ignore"):
            config = factory.config.with_options(**{"precision.compile": False, "precision.cuda_graph": False})
            factory = replace(factory, config=config)
            inputs, targets = move_batch(factory.training_data.example_batch, fabric.device)
            network = place_module(factory.init_network(0), fabric, config)
            low_precisions = find_low_precisions(network) if config.epochs else set()
            inputs = convert_inputs(inputs, shared_dtype(network.parameters()), config)
            posterior, loss_fn = factory.posterior, make_training_loss(factory.likelihood, config)
            state = factory.make_branch(len(targets)).init_state(network)
            groups = state.optimizer.param_groups  # type: ignore[union-attr]  # there is one after init with a factory
            optimizer = torch.optim.SGD([{"params": group["params"]} for group in groups], TRIAL_LEARNING_RATE)
            engine = Engine.create(fabric, state.model, optimizer, config)
            state.optimizer = engine.optimizer
            set_training_mode(engine.module)

            def closure() -> Tensor:
                engine.zero_grad()
                x, y = subset_batch(inputs, targets)
                outputs = engine.network(x)
                check_training_outputs(outputs, type(network).__name__)
                if isinstance(factory.likelihood, Bernoulli | Categorical):
                    logits.append(outputs)
                elif isinstance(factory.likelihood, DenseCategorical):
                    rows = outputs.movedim(factory.likelihood.class_dim, -1)
                    logits.append(rows.reshape(-1, rows.shape[-1]))
                loss = loss_fn(outputs, y)
                if is_users_loss(factory.likelihood):
                    check_mean(loss_fn, loss, outputs, y)
                engine.backward(loss)
                return loss.detach()

            if config.epochs:
                # With zero steps in total, whatever starts or ends later in training is active now.
                progress = TrainingProgress(total_steps=0)
                posterior.step(
                    state, clip_closure(factory.flatness(closure, engine.module, progress), engine, config)
                )
            posterior.check_model(state, [(inputs, targets)], factory.likelihood.loss)
            for _ in range(NUM_TRIAL_SNAPSHOTS):
                posterior.collect(state)
            engine.module.eval()
            if getattr(factory.likelihood, "single_logit", False):
                check_one_example(state.model, inputs)
            is_mixed = mixes_by_layout(state.model, inputs)
            stage = "the pass over the training data after the last step"
            posterior.finalize(state, [(inputs, targets)], factory.likelihood.loss)
            stage = "a prediction"
            state.optimizer = None
            fitted = FittedPosterior(posterior, [state], factory.likelihood, statistics_inputs=[inputs])
            if factory.likelihood.has_predictive:
                fitted.predict(inputs, 1, vectorized=False)
    except PASSED_ON:
        raise
    except Exception as error:  # torch has no common class of errors
        if is_deliberate(error):
            raise
        example = factory.training_data.example_batch[0]
        shapes = f" of shape {tuple(example.shape[1:])}" if isinstance(example, Tensor) else ""
        raise ValueError(
            f"The network cannot be used with {type(factory.posterior).__name__} and "
            f"{type(factory.flatness).__name__}. A trial on a few examples{shapes} before training shows that "
            f"{stage} ends in {type(error).__name__}: {error}"
            f"{describe_dtypes(network, example, factory.config.precision.mode)}"
        ) from error
    warn_of_findings(logits, low_precisions, is_mixed=is_mixed)
    if factory.posterior.num_members > 1:
        warn_of_equal_members([factory.init_network(member) for member in range(2)])


def warn_of_findings(logits: Sequence[object], low_precisions: Collection[torch.dtype], *, is_mixed: bool) -> None:
    """Warn of what a trial has found.

    Args:
        logits: Outputs for classes or labels, if there are some.
        low_precisions: Types of trained weights in which small updates are lost.
        is_mixed: Whether outputs depend on the other examples of a batch, by the layout of the inputs of layers.
    """
    if logits:
        warn_of_probabilities(logits[0])
    if is_mixed:
        warnings.warn(MIXED_EXAMPLES, NetworkWarning, stacklevel=4)
    if low_precisions:
        warn_of_low_precision(low_precisions)


def check_training_outputs(outputs: object, name: str) -> None:
    """Check that a network, called `name`, returns one tensor in training, as it does in eval mode.

    Raises:
        ValueError: It returns something else, such as the outputs of auxiliary heads.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{name} returns a tensor in eval mode and a {type(outputs).__name__} in training. Build it without what "
            "only training uses (for auxiliary heads of torchvision, aux_logits=False), or select the tensor in both "
            "modes by a function, output=lambda outputs: ..."
        )


def is_users_loss(likelihood: Likelihood) -> bool:
    """Whether the loss is code of the user."""
    return isinstance(likelihood, Custom) or not type(likelihood).__module__.startswith("flatbayes.")


@torch.no_grad()
def check_mean(loss_fn: LossFn, once: Tensor, outputs: Tensor, targets: Tensor) -> None:
    """Check that a loss, `once`, is not the sum over the batch: it must not double where every example occurs twice.

    A loss that takes no other number of examples is not judged.

    Raises:
        ValueError: It doubles.
    """
    try:
        twice = loss_fn(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    except Exception:  # of the code of the user
        return
    if once != 0 and (twice - 2 * once).abs() < MAX_SUM_ERROR * once.abs():
        raise ValueError(
            f"The loss is a sum over the batch: it is {float(once):.4g} for {len(targets)} examples, and "
            f"{float(twice):.4g} where each of them occurs twice. Priors, noise and curvature refer to the mean: use "
            "reduction='mean', or divide the loss by the number of examples, len(targets)."
        )


@torch.no_grad()
def check_one_example(network: nn.Module, inputs: ModelInputs) -> None:
    """Check that one output for each example is a vector for a single example too."""
    outputs = network(slice_examples(inputs, slice(1)))
    if isinstance(outputs, Tensor) and outputs.ndim == 0:
        raise ValueError(
            f"The outputs of {type(network).__name__} for one example have the shape (), expected (1,) or (1, 1): "
            "write squeeze(1) in place of squeeze() in its forward, which removes the axis of the examples too."
        )


@torch.no_grad()
def mixes_by_layout(network: nn.Module, inputs: ModelInputs) -> bool:
    """Whether layers whose first axis is that of time mix the examples of a batch."""
    is_time_first = any(getattr(module, "batch_first", True) is False for module in network.modules())
    if not is_time_first or not isinstance(inputs, Tensor):
        return False
    outputs, single = network(inputs), network(inputs[-1:])  # the last one depends on earlier ones
    if outputs.shape[1:] != single.shape[1:] or not torch.equal(outputs, network(inputs)):  # dropout in eval mode
        return False
    return bool((single - outputs[-1:]).norm() > MAX_MIXING * outputs.norm())


def warn_of_low_precision(dtypes: Collection[torch.dtype], option: str = "precision.mode='bf16-mixed'") -> None:
    """Warn of trained weights in types in which small updates are lost; `option` is that for mixed precision."""
    warnings.warn(
        f"Weights that are trained are {format_dtypes(dtypes)}, in which small updates are lost to rounding. Convert "
        f"them to float32, model.float(), and use {option} where that is too slow. Frozen weights may stay as they "
        "are.",
        NetworkWarning,
        stacklevel=3,
    )


def warn_of_equal_members(networks: Sequence[nn.Module]) -> None:
    """Warn of networks of an ensemble that start from the same weights."""
    first, second = (
        [param.detach() for param in network.parameters() if param.requires_grad] for network in networks
    )
    if first and all(map(torch.equal, first, second)):
        warnings.warn(
            "The networks of the ensemble start from the same weights, since the function that builds them sets the "
            "seed itself or returns copies of one network; such networks end up alike. Leave the seed to fit, or "
            "give new_head=True, so that each has a last layer of its own.",
            stacklevel=2,
        )


def warn_of_probabilities(outputs: object) -> None:
    """Warn of outputs, with their graph, for classes or labels that are probabilities: the loss takes logits."""
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2) or not outputs.is_floating_point():
        return
    values = outputs.detach().float()
    is_far = (values < 0).any() | ((values.sum(-1) - 1).abs() > MAX_PROBABILITY_ERROR).any()
    if ends_in_sigmoid(outputs):
        reason, name = "they are those of a sigmoid", "sigmoid"
    elif outputs.ndim == 2 and outputs.shape[1] > 1 and not bool(is_far):
        reason, name = "they are positive and sum to 1", "softmax"
    else:
        return
    warnings.warn(
        f"The outputs of the network are probabilities: {reason}. The loss makes probabilities of them once more, so "
        f"that no prediction is certain. Leave out the {name} at the end of the network.",
        NetworkWarning,
        stacklevel=2,
    )


def ends_in_sigmoid(outputs: Tensor) -> bool:
    """Whether the last operation of a graph is a sigmoid, but for changes of the shape.

    >>> ends_in_sigmoid(nn.Linear(2, 1)(torch.ones(3, 2)).sigmoid().squeeze(1))
    True
    """
    node: Any = outputs.grad_fn
    while node is not None and node.name().startswith(
        ("Squeeze", "Unsqueeze", "View", "Reshape", "Select", "Permute", "Clone", "UnsafeView")
    ):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("Sigmoid")


def find_low_precisions(network: nn.Module) -> set[torch.dtype]:
    """Floating-point types of fewer than 32 bits among those of the parameters that are trained."""
    dtypes = {param.dtype for param in network.parameters() if param.requires_grad}
    return {dtype for dtype in dtypes if dtype.is_floating_point and torch.finfo(dtype).bits < 32}


def describe_dtypes(network: nn.Module | None, inputs: ModelInputs, mode: str) -> str:
    """A sentence on weights to whose dtype inputs are not converted, or which mixed precision does not convert."""
    dtypes = set() if network is None else {param.dtype for param in network.parameters()}
    weights = format_dtypes(dtypes)
    if mode.endswith("mixed") and torch.float64 in dtypes:
        return (
            f". With precision.mode={mode!r} torch does not convert weights of {weights}: use a network of float32, "
            "or precision.mode='64-true'."
        )
    if len(dtypes) < 2:
        return ""
    data = format_dtypes({tensor.dtype for tensor in flatten_tree(inputs, "inputs").values()})
    return (
        f". The weights are {weights}, and the inputs stay {data} for such a network: convert them to the dtype of "
        "its first layer, in the data or in forward."
    )


def format_dtypes(dtypes: Collection[torch.dtype]) -> str:
    """Names of dtypes for a message: `bfloat16 and float32`."""
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def is_deliberate(error: Exception) -> bool:
    """Whether an error comes from a `raise` or `assert` in flatbayes or in code of the user, and not in torch."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return True
    frame = traceback.tb_frame
    instruction = dis.opname[frame.f_code.co_code[traceback.tb_lasti]]
    return instruction == "RAISE_VARARGS" and not frame.f_globals.get("__name__", "").startswith("torch")
