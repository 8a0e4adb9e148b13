"""Loss of a network as a function of its weights: values, gradients and Hessian-vector products.

The loss is the mean negative log likelihood over all given examples, without prior, weight decay or KL. Every pass
uses the same random numbers (dropout masks), so that losses differ by the weights only. Weights, buffers, modes,
`.grad` and random state are restored after each call.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from flatbayes.core import Examples, LossFn
from flatbayes.core.buffers import preserve_buffers
from flatbayes.core.input_trees import ModelInputs, move_batch
from flatbayes.core.network_calls import differentiable_recurrence
from flatbayes.core.randomness import RandomState, replay_rng
from flatbayes.core.weights import perturb, trainable_parameters


class LossSurface:
    """Mean loss over fixed examples, at perturbations of the current weights of a network.

    Examples:
        >>> surface = LossSurface(nn.Linear(1, 1), nn.functional.mse_loss, [(torch.ones(4, 1), torch.ones(4, 1))])
        >>> surface.loss() >= 0
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Examples,
        *,
        keep_mode: bool = False,
        updated_buffers: Collection[str] | None = None,
    ) -> None:
        """Store the network and the examples.

        Args:
            model: The network.
            loss_fn: Mean negative log likelihood of a batch, from outputs and targets.
            batches: Pairs of inputs and targets, as the network takes them; stored as a list, on its device.
            keep_mode: Evaluate each module in its current mode, as for a draw with dropout; by default in eval mode.
            updated_buffers: Buffers that training updated, for the re-estimation of normalization statistics at other
                weights; None if that is unknown.

        Raises:
            ValueError: There are no examples, or no trainable weights.
        """
        self.model = model
        self.params = trainable_parameters(model)
        self.loss_fn = loss_fn
        self.updated_buffers = updated_buffers
        self.batches = [move_batch(batch, self.params[0].device) if self.params else batch for batch in batches]
        self.num_examples = sum(len(targets) for _, targets in self.batches)
        if not self.num_examples:
            raise ValueError("A loss surface needs at least one example, got none.")
        if not self.params:
            raise ValueError(
                f"{type(model).__name__} has no trainable weights to perturb: their requires_grad is False, or they "
                "are not in parameters(), as in a linearised network. Measure the network that it was made from."
            )
        self._keep_mode = keep_mode
        self._rng_state = RandomState.capture(model)

    @property
    def num_params(self) -> int:
        """Number of trainable weights."""
        return sum(param.numel() for param in self.params)

    @torch.no_grad()
    def loss(self, perturbation: Sequence[Tensor] | None = None) -> float:
        """L(w + e), summed over batches in float64.

        Args:
            perturbation: e, a tensor for each trainable parameter; None for e = 0.
        """
        with self._perturb_weights(perturbation):
            return sum(
                self._batch_weight(targets) * float(self._batch_loss(x, targets)) for x, targets in self.batches
            )

    def gradient(self, perturbation: Sequence[Tensor] | None = None) -> tuple[float, list[Tensor]]:
        """L(w + e) and its gradient.

        Args:
            perturbation: e, a tensor for each trainable parameter; None for e = 0.
        """
        loss, total = 0.0, [torch.zeros_like(param) for param in self.params]
        with self._perturb_weights(perturbation), torch.enable_grad():
            for inputs, targets in self.batches:
                batch_loss, weight = self._batch_loss(inputs, targets), self._batch_weight(targets)
                loss += weight * float(batch_loss.detach())
                grads = torch.autograd.grad(batch_loss, self.params, materialize_grads=True)
                torch._foreach_add_(total, grads, alpha=weight)
        return loss, total

    def hessian_vector_product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """H v, the gradient of <gradient, v>: exact if every operation can be differentiated twice.

        Args:
            direction: v, a tensor for each trainable parameter.
        """
        total = [torch.zeros_like(param) for param in self.params]
        with self._perturb_weights(None), torch.enable_grad():
            for inputs, targets in self.batches:
                batch_loss = self._batch_loss(inputs, targets)
                grads = torch.autograd.grad(batch_loss, self.params, create_graph=True, materialize_grads=True)
                slope = torch.stack([(g * v).sum() for g, v in zip(grads, direction, strict=True)]).sum()
                if slope.requires_grad:  # otherwise the loss is linear in the weights
                    products = torch.autograd.grad(slope, self.params, materialize_grads=True)
                    torch._foreach_add_(total, products, alpha=self._batch_weight(targets))
        return total

    def check_double_backward(self) -> None:
        """Differentiate the gradient of the first batch through every operation.

        `hessian_vector_product` only visits operations that lead to the weights, and so passes by the error of an
        operation that can be differentiated once only (`once_differentiable`), with wrong products.

        Raises:
            RuntimeError: An operation cannot be differentiated twice.
        """
        own_grads = [param.grad for param in self.params]
        inputs, targets = self.batches[0]
        for param in self.params:
            param.grad = None
        try:
            with self._perturb_weights(None), torch.enable_grad():
                grads = torch.autograd.grad(
                    self._batch_loss(inputs, targets), self.params, create_graph=True, materialize_grads=True
                )
                total = torch.stack([grad.sum() for grad in grads]).sum()
                if total.requires_grad:
                    total.backward()
        finally:
            for param, grad in zip(self.params, own_grads, strict=True):
                param.grad = grad

    def _batch_weight(self, targets: Tensor) -> float:
        return len(targets) / self.num_examples

    def _batch_loss(self, inputs: ModelInputs, targets: Tensor) -> Tensor:
        loss = self.loss_fn(self.model(inputs), targets)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                f"The loss of {type(self.model).__name__} does not depend on its trainable weights, so there is "
                "nothing to measure. Measure the network that it was made from."
            )
        return loss

    @contextmanager
    def _perturb_weights(self, perturbation: Sequence[Tensor] | None) -> Iterator[None]:
        perturbed = nullcontext() if perturbation is None else perturb(self.params, list(perturbation))
        unfused = differentiable_recurrence(self.model)
        with preserve_buffers(self.model), replay_rng(self._rng_state), unfused, perturbed:
            if not self._keep_mode:
                self.model.eval()
            yield
