"""Distillation of a posterior into one network that predicts mean and uncertainty in one forward pass.

The losses are in `flatbayes.distillation.students`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from flatbayes.core.randomness import Stream, make_generator
from flatbayes.distillation.students import Student, make_student
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood, Predictive
from flatbayes.posteriors import MAP
from flatbayes.prediction import CompiledPosterior, FittedPosterior
from flatbayes.prediction.deploy import InputPreprocessor
from flatbayes.prediction.example_inputs import make_example_inputs
from flatbayes.prediction.inputs import make_input_tensor
from flatbayes.training.config import TrainingConfig
from flatbayes.training.fit import fit
from flatbayes.training.model_builder import ModelFactory, make_model_builder

PREPROCESSING_BATCH_SIZE = 512
"""Examples that are preprocessed at a time."""


def distill(
    fitted: FittedPosterior,
    model: nn.Module | ModelFactory,
    inputs: Any,
    config: TrainingConfig = TrainingConfig(),
    flatness: Flatness = SAM(),
    *,
    num_draws: int = 30,
    seed: int = 0,
    show_progress: bool | None = None,
) -> CompiledPosterior:
    """Train one network, the student, on the predictions of a posterior, including their uncertainty.

    This works for every posterior, also if its draws are more than weights. The student learns the posterior's
    uncertainty only on the inputs it is given, and a posterior is confident on its training data. Pass other inputs
    as well; they need no labels.

    Args:
        fitted: The posterior; it is not changed.
        model: The student or a function that builds it, as in `fit`. It has one output for each class plus one,
            two for each of several labels, or three for each target of a regression; a function with a parameter
            `num_outputs` or `num_classes` is called with that number.
        inputs: Raw training examples of the student, in the form of the posterior's training data: a tensor, an array
            or a data frame.
        config: How the student is trained; use `OptimizationConfig(clip_norm=1)` for a regression.
        flatness: Flatness method of the training.
        num_draws: Networks whose predictions are averaged for the targets.
        seed: Determines all random numbers: the draws, the initial weights, the order of the examples.
        show_progress: Show a progress bar; by default if standard error is a terminal.

    Returns:
        A module with the outputs of `FittedPosterior.compile`, which is exported in the same way.

    Raises:
        ValueError: The student has the wrong number of outputs, or predictions of numbers have no finite variance.
        TypeError: The likelihood is user-defined.

    Examples:
        >>> student = distill(fitted, MLP, data.train.inputs, config)
        >>> sorted(student(inputs[:5]))
        ['entropy', 'mean', 'mutual_information']
    """
    student = make_student(fitted.likelihood)
    if fitted.input_structure is not None:
        raise ValueError(
            "The posterior was fitted to inputs that are not one tensor, which distillation takes. Use the posterior "
            "itself, or train a student on fitted.predict(inputs).mean."
        )
    inputs = make_input_tensor(inputs, fitted.info, fitted.transform)
    targets = student.make_targets(fitted.predict(inputs, num_draws, seed=seed)).cpu()
    preprocessed = torch.cat([fitted.preprocess(batch).cpu() for batch in inputs.split(PREPROCESSING_BATCH_SIZE)])
    shape, count = tuple(preprocessed.shape[1:]), student.num_outputs
    build = make_model_builder(model, {"input_shape": shape, "num_classes": count, "num_outputs": count})
    fitted_student = fit(
        build,
        _make_shuffled_loader(preprocessed, targets, config.batch_size, seed),
        MAP(),
        flatness,
        replace(config, num_validations=0),
        likelihood=_StudentLikelihood(student),
        seed=seed,
        show_progress=show_progress,
    )
    network = fitted_student.states[0].model
    example = make_example_inputs(fitted)
    return CompiledPosterior(
        InputPreprocessor(fitted.transform, fitted_student.dtype, fitted_student.device, fitted.info.get("inputs")),
        [network],
        student,
        inputs[:2].cpu() if example is None else example,
    ).to(fitted_student.device)


@dataclass(frozen=True, eq=False)
class _StudentLikelihood(Likelihood):
    """The loss of a student as the likelihood of a training run, without a predictive distribution."""

    has_predictive: ClassVar[bool] = False
    student: Student

    @property
    def num_outputs(self) -> int:
        return self.student.num_outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        expected_shape = (len(targets), self.num_outputs)
        if outputs.shape != expected_shape:
            raise ValueError(
                f"The student gives outputs of shape {tuple(outputs.shape)}, expected {expected_shape}: one for each "
                "class plus one, two for each of several labels, or three for each target of a regression. Change "
                "the size of its last layer, or pass a function that takes num_outputs."
            )
        return self.student.loss(outputs, targets)

    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        raise RuntimeError("A student has no predictive distribution: call the module that distill returns.")


def _make_shuffled_loader(inputs: Tensor, targets: Tensor, batch_size: int, seed: int) -> DataLoader[Any]:
    pairs, generator = TensorDataset(inputs, targets), make_generator(Stream.STUDENT_ORDER, seed)
    sampler = RandomSampler(pairs, generator=generator)
    batches = BatchSampler(sampler, min(batch_size, len(pairs)), drop_last=True)
    # Without a generator of its own, the loader would draw a seed from the global generator in every pass.
    return DataLoader(pairs, sampler=batches, batch_size=None, generator=generator)
