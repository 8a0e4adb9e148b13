"""A custom loss for training, with the predictions of another likelihood."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from flatbayes.likelihoods.bernoulli import Bernoulli
from flatbayes.likelihoods.categorical import Categorical
from flatbayes.likelihoods.dense_categorical import DenseCategorical
from flatbayes.likelihoods.likelihood import Likelihood, Predictive


@dataclass(frozen=True)
class Custom(Likelihood):
    """Trains with a loss of the user's: class weights, a robust loss, extra terms.

    For outputs that no other likelihood makes predictions of, write a subclass of `Likelihood`.

    Attributes:
        loss_fn: (outputs, targets) -> the *mean* negative log likelihood of the batch, a differentiable scalar
            without prior, weight decay or KL, which belong to the posterior. Another loss works too, but a
            temperature of one then has no special meaning. For an `output_likelihood` with a single logit both
            have the shape (batch,) and the same type, as `torch.nn.BCEWithLogitsLoss` takes them. For a `Bernoulli`
            targets have the type and the shape of the outputs, and are NaN for labels that are not known. For a
            `DenseCategorical` with `shift_labels` the last outputs and the first targets are left out.
        output_likelihood: Makes predictions out of outputs.

    Examples:
        >>> weights = torch.tensor([1.0, 5.0])  # errors on the second class cost more
        >>> likelihood = Custom(nn.CrossEntropyLoss(weights), Categorical(num_classes=2))
        >>> x, y = torch.randn(40, 3), torch.arange(40) % 2
        >>> fitted = fit(nn.Linear(3, 2), (x, y), MAP(), likelihood=likelihood, config=config)
        >>> fitted.predict(x).mean.shape
        torch.Size([40, 2])
    """

    loss_fn: Callable[[Tensor, Tensor], Tensor]
    output_likelihood: Likelihood

    @property
    def num_outputs(self) -> int:
        """The number of outputs of `output_likelihood`."""
        return self.output_likelihood.num_outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The value of `loss_fn`.

        Raises:
            ValueError: It is not a scalar, such as one loss per example, or `output_likelihood` makes no predictions
                of these outputs.
        """
        self.check_outputs(outputs)
        inner = unwrap_custom(self.output_likelihood)
        if isinstance(inner, Bernoulli):
            targets = torch.where(inner.split_targets(targets)[1], targets, math.nan).to(outputs.dtype)
        if targets.dtype == torch.float64:  # of a regression; losses of torch do not backpropagate mixed precision
            targets = targets.to(outputs.dtype)
        if isinstance(inner, Categorical) and inner.single_logit and targets.numel() == len(outputs):
            outputs = inner.to_logits(outputs)[:, 1]
            targets = targets.reshape(-1).to(outputs.dtype)
        if isinstance(inner, DenseCategorical):
            outputs, targets = inner.align(outputs, targets)
        loss = self.loss_fn(outputs, targets)
        if loss.ndim != 0:
            raise ValueError(
                f"The loss must be one number, the mean over the batch, but has shape {tuple(loss.shape)}: "
                "end it with .mean()."
            )
        return loss

    def check_outputs(self, outputs: Tensor) -> None:
        """Make the check of `output_likelihood`."""
        self.output_likelihood.check_outputs(outputs)

    def find_labelled(self, targets: Tensor) -> Tensor | None:
        """Where `output_likelihood` has a target, which the loss must ignore elsewhere."""
        return self.output_likelihood.find_labelled(targets)

    @property
    def has_positions(self) -> bool:  # type: ignore[override]
        """Whether those of `output_likelihood` have positions."""
        return self.output_likelihood.has_positions

    def find_targets(self, targets: Tensor) -> Tensor | None:
        """The targets of `output_likelihood`."""
        return self.output_likelihood.find_targets(targets)

    def count_targets(self, targets: Tensor) -> int:
        """The number of `output_likelihood`."""
        return self.output_likelihood.count_targets(targets)

    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        """The predictions of `output_likelihood`."""
        return self.output_likelihood.predictive(outputs, keep_members=keep_members)

    def count_predictive_bytes(self, num_networks: int) -> int:
        """The bytes of `output_likelihood`."""
        return self.output_likelihood.count_predictive_bytes(num_networks)


@overload
def unwrap_custom(likelihood: Likelihood) -> Likelihood: ...


@overload
def unwrap_custom(likelihood: object) -> object: ...


def unwrap_custom(likelihood: object) -> object:
    """The likelihood that makes predictions in place of a loss of the user's; anything else as it is.

    >>> unwrap_custom(Custom(torch.nn.functional.cross_entropy, Categorical(3)))
    Categorical(num_classes=3, ignore_index=-100, single_logit=False)
    """
    return unwrap_custom(likelihood.output_likelihood) if isinstance(likelihood, Custom) else likelihood


def count_right(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
    """Number of right predictions of classes or labels by one network, and of all; 0 of 0 where there are none.

    Outputs of a likelihood of the user's are one logit for each class. Probabilities have no right prediction, nor do
    labels that are not known.
    """
    inner = unwrap_custom(likelihood)
    if isinstance(inner, Bernoulli):
        values, is_known = inner.split_targets(targets)
        is_known &= (values == 0) | (values == 1)
        is_right = (outputs.reshape(targets.shape) > 0) == (values == 1)
        return int((is_right & is_known).sum()), int(is_known.sum())
    if isinstance(inner, DenseCategorical):
        is_labelled = inner.find_targets(targets)
        is_right = (inner.to_logits(outputs).argmax(-1) == targets) & is_labelled
        return int(is_right.sum()), int(is_labelled.sum())
    if targets.is_floating_point() or targets.ndim != 1:
        return 0, 0
    classes = (inner.to_logits(outputs) if isinstance(inner, Categorical) else outputs).argmax(-1)
    return int((classes == targets).sum()), len(targets)
