"""CUDA graph of a training step: all passes of the flat closure are recorded once, and then launched as one.

    first batch:    a few passes to warm up; record the flat closure on static inputs
    other batches:  copy the batch into the static inputs, and launch the graph: `.grad` and the loss are its own

The host launches one graph instead of hundreds of kernels, which saves time where the kernels are short. A recorded
step is always the same: the flatness must not depend on the progress of training, and nothing may be random or read
by the host. The update of the weights is not recorded: its learning rate and its noise differ between steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.buffers import preserve_buffers
from flatbayes.core.input_trees import flatten_tree, map_tensors
from flatbayes.core.randomness import RandomState
from flatbayes.core.tensor_lists import copy_values
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.closure import BatchClosure
from flatbayes.training.config import TrainingConfig
from flatbayes.training.identity import describe_name

NUM_WARM_UP_PASSES = 3
"""Calls before a step is recorded, in which libraries choose and load their kernels."""

ADVICE = "Set precision.cuda_graph to false."

Record = Callable[[Closure], Closure]
"""Records a step, and makes a closure that repeats it on the same memory and returns its loss."""


def check_graph_capture(
    posterior: Posterior, flatness: Flatness, config: TrainingConfig, device: torch.device, num_processes: int
) -> None:
    """Refuse what a CUDA graph of the step cannot repeat, if the configuration asks for one."""
    if not config.precision.cuda_graph:
        return
    reason = None
    if device.type != "cuda":
        reason = f"the training is on {device.type}, and CUDA graphs are on devices of type cuda"
    elif num_processes > 1:
        reason = f"{num_processes} processes train together, and their communication is not recorded"
    elif config.precision.mode == "16-mixed":
        reason = "the loss scaler of precision.mode 16-mixed differs between steps; use bf16-mixed"
    elif posterior.has_weight_distribution and not posterior.uses_gradient_only:
        reason = (
            f"{describe_name(posterior)} computes standard deviations in every step, outside of the recorded passes"
        )
    elif flatness.needs_weight_distribution:
        reason = f"{describe_name(flatness)} follows a distribution that changes, and a recorded step does not"
    elif depends_on_progress(flatness):
        reason = f"{describe_name(flatness)} depends on the step of training, and a recorded step does not"
    if reason is not None:
        raise ValueError(f"The training step cannot be a CUDA graph: {reason}. {ADVICE}")


def depends_on_progress(flatness: Flatness) -> bool:
    """Whether a flatness needs the progress of training, so that its steps differ."""
    try:
        flatness(lambda: torch.zeros(()), nn.Identity(), None)
    except ValueError:
        return True
    return False


@dataclass
class GraphedFlatness:
    """A flatness whose closures launch the recorded step; batches of other shapes than the first are not recorded."""

    flatness: Callable[[BatchClosure, nn.Module, TrainingProgress], Closure]
    record: Record
    _step: "_RecordedStep | None" = field(default=None, init=False)

    def __call__(self, closure: BatchClosure, module: nn.Module, progress: TrainingProgress) -> Closure:
        """Make the closure of a batch.

        Raises:
            ValueError: When the closure is called, and the step cannot be recorded.
        """

        def graphed_closure() -> Tensor:
            if self._step is None:
                self._step = _RecordedStep.create(self.flatness, closure, module, progress, self.record)
            if self._step.fits(closure):
                return self._step.repeat(closure)
            return self.flatness(closure, module, progress)()

        return graphed_closure


@dataclass(frozen=True, eq=False)
class _RecordedStep:
    """A step on static memory.

    Attributes:
        inputs: Tensors that hold the batch.
        repeat_passes: Computes gradients and loss of the batch that `inputs` hold.
        grads: The tensors in which the gradients are, one for each parameter, or None.
        num_gradients: Number of gradients that a step counts.
    """

    inputs: list[Tensor]
    repeat_passes: Closure
    grads: Sequence[Tensor | None]
    num_gradients: float

    @staticmethod
    def create(
        flatness: Callable[[BatchClosure, nn.Module, TrainingProgress], Closure],
        closure: BatchClosure,
        module: nn.Module,
        progress: TrainingProgress,
        record: Record,
    ) -> "_RecordedStep":
        static = replace(
            closure,
            inputs=map_tensors(torch.clone, closure.inputs),
            targets=closure.targets.clone(),
        )
        status, num_before = closure.run.status, closure.run.status.num_gradients
        step = flatness(static, module, progress)
        random_state = RandomState.capture(module)
        with preserve_buffers(module):
            step()
            num_gradients = status.num_gradients - num_before
            if not RandomState.capture(module).equals(random_state):
                raise ValueError(
                    f"The training step cannot be a CUDA graph: {type(module).__name__} draws random numbers in its "
                    f"forward pass, such as those of dropout. Set its dropout rate to 0, or {ADVICE.lower()}"
                )
            try:
                repeat_passes = record(step)
            except RuntimeError as error:
                raise ValueError(
                    "The training step cannot be a CUDA graph, because the network or the loss reads a value on the "
                    f"host, or uses an operation that CUDA graphs do not support: {error} {ADVICE}"
                ) from error
        status.num_gradients = num_before
        grads = [param.grad for param in closure.engine.params]
        return _RecordedStep(_list_tensors(static), repeat_passes, grads, num_gradients)

    def fits(self, closure: BatchClosure) -> bool:
        """Whether a batch has the shapes and dtypes of the recorded one."""
        tensors = _list_tensors(closure)
        return len(tensors) == len(self.inputs) and all(
            new.shape == old.shape and new.dtype == old.dtype for new, old in zip(tensors, self.inputs, strict=True)
        )

    def repeat(self, closure: BatchClosure) -> Tensor:
        """Compute the gradients of a batch, and return its loss."""
        with torch.no_grad():
            copy_values(self.inputs, _list_tensors(closure))
        loss = self.repeat_passes()
        for param, grad in zip(closure.engine.params, self.grads, strict=True):
            param.grad = grad  # what updates the weights may have set another one
        closure.run.status.num_gradients += self.num_gradients
        return loss.clone()  # the next step overwrites it


def record_cuda_graph(step: Closure) -> Closure:
    """Record a step, which reads no values on the host, as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARM_UP_PASSES):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def repeat_step() -> Tensor:
        graph.replay()
        return loss

    return repeat_step


def _list_tensors(closure: BatchClosure) -> list[Tensor]:
    return [*flatten_tree(closure.inputs, "").values(), closure.targets]
