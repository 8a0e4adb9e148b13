"""A posterior distilled into one network, which gives the mean and the uncertainty in one pass."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes.core.randomness import spawn_seeds
from flatbayes.distillation.students import Student, make_student
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood, Predictive
from flatbayes.posteriors import MAP
from flatbayes.prediction import CompiledPosterior, FittedPosterior
from flatbayes.prediction.deploy import InputPreprocessor
from flatbayes.prediction.sampling import make_example_inputs
from flatbayes.training.config import TrainingConfig
from flatbayes.training.fit import fit
from flatbayes.training.model_builder import ModelFactory, make_model_builder

PREPROCESSING_BATCH_SIZE = 512


def distill(
    fitted: FittedPosterior,
    model: nn.Module | ModelFactory,
    inputs: Tensor,
    config: TrainingConfig = TrainingConfig(),
    flatness: Flatness = SAM(),
    *,
    num_draws: int = 30,
    seed: int = 0,
    show_progress: bool | None = None,
) -> CompiledPosterior:
    """Train one network to predict what the posterior does, uncertainty included.

    It works for every posterior, also those whose draws are more than weights. The student knows the posterior's
    uncertainty only where it has seen it, and a posterior is sure of its training data: give it other inputs as well,
    which need no labels.

    Args:
        fitted: The posterior, which is left as it is.
        model: Builds the student, or is it, as in `fit`; it has one output for each class and one more, or three for
            each number to predict, and is given that count as `num_outputs` (or `num_classes`) if it takes it.
        inputs: Examples to learn on, as the training data had them.
        config: How it is trained; for numbers, clip the gradient (`OptimizationConfig(clip_norm=1)`).
        flatness: Where gradients are taken.
        num_draws: Networks that the student learns from.
        seed: Decides everything random: the draws, the initial weights, the order of the examples.
        show_progress: Show a progress bar; by default if standard error is a terminal.

    Returns:
        A module that answers as one of `FittedPosterior.compile` does, and is exported alike.

    Raises:
        ValueError: The student has the wrong number of outputs.
        TypeError: The likelihood is one of the user's own.
    """
    student = make_student(fitted.likelihood)
    lesson = student.make_targets(fitted.predict(inputs, num_draws, seed=seed)).cpu()
    ready = torch.cat([fitted.preprocess(batch).cpu() for batch in inputs.split(PREPROCESSING_BATCH_SIZE)])
    shape, count = tuple(ready.shape[1:]), student.num_outputs
    build = make_model_builder(model, {"input_shape": shape, "num_classes": count, "num_outputs": count})
    taught = fit(
        build,
        _make_shuffled_loader(ready, lesson, min(config.batch_size, len(ready)), spawn_seeds(seed, count=1)[0]),
        MAP(),
        flatness,
        replace(config, num_validations=0),
        likelihood=_StudentLikelihood(student),
        seed=seed,
        show_progress=show_progress,
    )
    network = taught.states[0].model
    example = make_example_inputs(fitted)
    return CompiledPosterior(
        InputPreprocessor(fitted.transform, taught.dtype),
        [network],
        student,
        inputs[:2].cpu() if example is None else example,
    ).to(taught.device)


@dataclass(frozen=True, eq=False)
class _StudentLikelihood(Likelihood):
    """The student's loss, in the place of a likelihood."""

    student: Student

    @property
    def num_outputs(self) -> int:
        return self.student.num_outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = (len(targets), self.num_outputs)
        if outputs.shape != wanted:
            raise ValueError(
                f"The student gives outputs of shape {tuple(outputs.shape)}, expected {wanted}: one for each class "
                "and one more, or three for each number to predict. Change the size of its last layer, or pass a "
                "function that takes num_outputs."
            )
        return self.student.loss(outputs, targets)

    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        raise RuntimeError("A student has no predictive distribution but its own answer: call the module.")


def _make_shuffled_loader(inputs: Tensor, targets: Tensor, batch_size: int, seed: int) -> DataLoader[Any]:
    pairs, generator = TensorDataset(inputs, targets), torch.Generator().manual_seed(seed)
    batches = BatchSampler(RandomSampler(pairs, generator=generator), batch_size, drop_last=True)
    # The loader takes a seed for its workers at every pass, from the global generator unless it is given another.
    return DataLoader(pairs, sampler=batches, batch_size=None, generator=generator)
