"""A negative log likelihood of one's own, with outputs that are read as another likelihood reads them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from flatbayes.likelihoods.likelihood import Likelihood, Predictive


@dataclass(frozen=True)
class Custom(Likelihood):
    """Trains with a loss of yours: label smoothing, class weights, a robust loss, extra terms.

    For outputs that no likelihood here can read, write a subclass of `Likelihood`.

    Attributes:
        loss_fn: (outputs, targets) to the *mean* over the batch of the negative log likelihood, a differentiable
            scalar. Prior, weight decay and KL are the posterior's. What is not a negative log likelihood works too,
            but then a temperature of one has no meaning of its own.
        output_likelihood: Makes predictions out of outputs.
    """

    loss_fn: Callable[[Tensor, Tensor], Tensor]
    output_likelihood: Likelihood

    @property
    def num_outputs(self) -> int:
        """As many as what reads them wants."""
        return self.output_likelihood.num_outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Yours.

        Raises:
            ValueError: It is not a single number, such as a loss per example.
        """
        loss = self.loss_fn(outputs, targets)
        if loss.ndim != 0:
            raise ValueError(
                f"The loss must be one number, the mean over the batch, but has shape {tuple(loss.shape)}: "
                "end it with .mean()."
            )
        return loss

    def predictive(self, outputs: Iterable[Tensor], *, keep_members: bool = False) -> Predictive:
        """As `reads` has it."""
        return self.output_likelihood.predictive(outputs, keep_members=keep_members)
