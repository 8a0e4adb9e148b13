"""Stein variational gradient descent (SVGD; Liu & Wang, NeurIPS 2016): particles that repel each other.

M networks, the particles, move together so that their empirical distribution approaches the posterior. With the
scores s_j, the gradients of the log posterior density, and a Gaussian kernel of bandwidth h:

    k_ij = exp(-||x_i - x_j||² / h),   h = median squared distance / log(M + 1)
    phi_i = (1 / M) sum_j [k_ij s_j + (2 / h) (x_i - x_j) k_ij]
    for each step:  x_i = x_i + lr * (M T / num_data) * phi_i        by the optimizer
    draw: one of the particles

In the unit of the optimizer, particles that are far apart each take the step of MAP. With a sharpness-aware gradient
it is flat SVGD: the scores are those of the sharpness-aware posterior. With `rho` it is flat-seeking inference on
particles (FHBI, ICML 2025): all particles together are perturbed against phi, and kernel and scores are taken there,

    x'_i = x_i - rho * phi_i / ||phi||,   x_i = x_i + lr * (M T / num_data) * phi_i(x')
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.buffers import eval_mode, find_changed, mark_frozen, preserve_buffers
from flatbayes.core.gradients import dense_gradient
from flatbayes.core.names import check_choice
from flatbayes.core.networks import check_materialized, check_real
from flatbayes.core.randomness import RandomState, preserve_rng, rewind_rng
from flatbayes.core.tensor_lists import flatten, flatten_wide, unflatten
from flatbayes.core.traversal import list_parameters
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.optimization import DEFAULT_ADAM, check_temperature, init_state, step_optimizer
from flatbayes.posteriors.posterior import Posterior
from flatbayes.posteriors.prior_precision import check_prior_precision
from flatbayes.posteriors.snapshots import draw_snapshot_index
from flatbayes.posteriors.variational import init_variational_optimizer

Particles = Float[Tensor, "particles params"]
TransportNorm = Literal["euclidean", "rkhs"]
"""Norm of the transport direction: of all particles together, or in the reproducing kernel Hilbert space."""


@dataclass(frozen=True)
class SVGD(Posterior):
    """Networks that are trained together and repel each other.

    A step costs one gradient per particle, and twice as many with `rho`. The optimizer must have no weight decay.

    Use it for few networks that should cover the posterior, in place of an ensemble of the same size.

    Attributes:
        num_particles: Number of networks.
        prior_precision: Precision of a Gaussian prior over all trainable weights.
        temperature: T in the posterior density p(w) exp(-num_data / T * mean NLL(w)).
        bandwidth: h of the kernel; None for the median of the squared distances divided by log(M + 1), in every step.
        rho: Radius of the perturbation of all particles together; 0 for SVGD, above 0 for FHBI.
        norm: Norm in which `rho` is measured. In many dimensions that of the Hilbert space is dominated by the width
            of the kernel, so that the perturbation is much shorter.
        initial_std: Standard deviation of the noise between the initial particles, around the weights of the network.
            None: new initial weights of every layer that has `reset_parameters`. Give a number where the network
            starts from trained weights, which only the first particle would have otherwise.

    Examples:
        >>> fitted = fit(MLP, data, SVGD(num_particles=3), SAM(rho=0.1), config)
        >>> fitted.predict(inputs, num_draws=3).mutual_information.shape
        torch.Size([100])
    """

    num_particles: int = 5
    prior_precision: float = 1.0
    temperature: float = 1.0
    bandwidth: float | None = None
    rho: float = 0.0
    norm: TransportNorm = "euclidean"
    initial_std: float | None = None

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {self.num_particles}.")
        if self.prior_precision is None:
            raise ValueError("prior_precision must be a number: the optimizer of SVGD has no weight decay.")
        check_prior_precision(self.prior_precision)
        check_temperature(self.temperature)
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be positive and finite, got {self.bandwidth}.")
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"rho is a radius: it must be finite and at least 0, got {self.rho}.")
        check_choice("norm", self.norm, TransportNorm)
        if self.initial_std is not None and not 0 <= self.initial_std < math.inf:
            raise ValueError(f"initial_std must be finite and at least 0, got {self.initial_std}.")

    requires_stationary_loss = "at_end"  # the particles approach one density

    @property
    def stochastic(self) -> bool:
        """True if there are several particles."""
        return self.num_particles > 1

    @property
    def gradients_per_step(self) -> float:
        """One for each particle, and a second one with `rho`."""
        return self.num_particles * (2.0 if self.rho > 0 else 1.0)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Adam without weight decay."""
        return DEFAULT_ADAM

    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return a state of model, particles, and an optimizer over all of them; see `Posterior.init`.

        The parameters of the model are the first particle. `particles` has the others, one per row; the optimizer
        updates it too.

        Raises:
            ValueError: The optimizer has weight decay or omits the particles.
        """
        check_materialized(model)
        check_real(model.named_parameters(), "SVGD")
        state = init_state(model, None, num_data, None)
        # The gradient is set by formula. A tensor that requires gradients could not be loaded into.
        with preserve_rng(model):
            particles = nn.Parameter(self._init_particles(model), requires_grad=False)
        state.statistics = {"particles": particles}
        state.optimizer = init_variational_optimizer(
            make_optimizer, model, [particles], self.prior_precision, "particles"
        )
        return state

    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one step of all particles together. Returns their mean loss."""
        return step_optimizer(state, lambda: self._compute_directions(state, closure), prior_precision=None)

    def count_stored_snapshots(self, state: State) -> int:
        """Number of particles."""
        return self.num_particles

    @contextmanager
    def load_snapshot(self, state: State, index: int) -> Iterator[nn.Module]:
        """Yield the model with the weights of a particle; 0 is the model itself."""
        params = trainable_parameters(state.model)
        weights = None if index == 0 else unflatten(state.statistics["particles"][index - 1], params)
        with nullcontext() if weights is None else swap_values(params, weights), eval_mode(state.model):
            yield state.model

    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """Return a context that yields the model with the weights of a particle."""
        return self.load_snapshot(state, draw_snapshot_index(self.num_particles, generator, "SVGD"))

    def _init_particles(self, model: nn.Module) -> Tensor:
        params = trainable_parameters(model)
        center = flatten(params)
        rows = center.repeat(self.num_particles - 1, 1)
        if self.initial_std is not None:
            return rows.add_(torch.randn_like(rows), alpha=self.initial_std)
        modules = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        own_params = list({p: None for m in modules for p in m.parameters(recurse=False)})  # with frozen ones
        for row in rows:
            with swap_values(own_params, own_params), preserve_buffers(model):
                for module in modules:
                    reset = getattr(module, "reset_parameters", None)
                    if callable(reset):
                        reset()
                row.copy_(flatten(params))
        return rows

    def _compute_directions(self, state: State, closure: Closure) -> Tensor:
        """Set `.grad` of all optimized tensors to the direction of the step. Returns the mean loss."""
        params, others = trainable_parameters(state.model), state.statistics["particles"]
        others.grad = None  # gradient clipping within the closure must not see that of the last step
        start, rng_state = torch.cat([flatten_wide(params)[None], others.detach()]), RandomState.capture(state.model)
        marks = mark_frozen(list_parameters(state.model))
        loss, grads = self._compute_potential_gradients(state, closure, start)
        bandwidth = self._find_bandwidth(start)
        phi = stein_direction(start, -grads, bandwidth)
        if self.rho > 0:
            norm = stein_norm(start, -grads, bandwidth) if self.norm == "rkhs" else phi.norm()
            perturbed = start - self.rho / norm.clamp(min=torch.finfo(phi.dtype).tiny) * phi
            with rewind_rng(rng_state), preserve_buffers(state.model, find_changed(marks)):
                _, grads = self._compute_potential_gradients(state, closure, perturbed)
            phi = stein_direction(perturbed, -grads, self._find_bandwidth(perturbed))
        directions = phi.mul_(-self.num_particles * self.temperature / state.num_data)
        for param, value in zip(params, unflatten(directions[0], params), strict=True):
            param.grad = value.to(param.dtype)
        others.grad = directions[1:].to(others.dtype)
        return loss

    def _compute_potential_gradients(
        self, state: State, closure: Closure, particles: Particles
    ) -> tuple[Tensor, Particles]:
        """Mean loss, and gradients of (n / T) L + prior_precision / 2 ||x||² at the particles.

        Buffers, such as running statistics, follow the first particle, which validation during training uses.
        """
        params, losses, rows = trainable_parameters(state.model), list[Tensor](), list[Tensor]()
        marks = mark_frozen(list_parameters(state.model))
        for k, particle in enumerate(particles):
            for param in params:
                param.grad = None
            buffers = preserve_buffers(state.model, find_changed(marks)) if k else nullcontext()
            with buffers, swap_values(params, unflatten(particle, params)):
                losses.append(closure())
            rows.append(flatten_wide([dense_gradient(param) for param in params]))
        grads = torch.stack(rows).mul_(state.num_data / self.temperature)
        return torch.stack(losses).mean(0), grads.add_(particles, alpha=self.prior_precision)

    def _find_bandwidth(self, particles: Particles) -> Float[Tensor, ""]:
        return median_bandwidth(particles) if self.bandwidth is None else particles.new_tensor(self.bandwidth)


def squared_distances(particles: Particles) -> Float[Tensor, "particles particles"]:
    """Return ||x_i - x_j||² of all pairs."""
    return torch.stack([(particles - particle).square().sum(1) for particle in particles])


def median_bandwidth(particles: Particles) -> Float[Tensor, ""]:
    """Return the median squared distance of different particles divided by log(M + 1); 1 if it is 0."""
    count = len(particles)
    if count == 1:
        return particles.new_ones(())
    pairs = torch.triu_indices(count, count, offset=1, device=particles.device)
    bandwidth = squared_distances(particles)[pairs[0], pairs[1]].median() / math.log(count + 1)
    return torch.where(bandwidth > 0, bandwidth, 1.0)


def stein_direction(particles: Particles, scores: Particles, bandwidth: Float[Tensor, ""]) -> Particles:
    """Return phi_i = (1 / M) sum_j [k_ij s_j + (2 / h) (x_i - x_j) k_ij] (Liu & Wang, equation 8).

    Here x are the particles, s, the scores, the gradient of the log density at each of them, and h is the bandwidth.
    """
    kernel = torch.exp(-squared_distances(particles) / bandwidth)
    repulsion = kernel.sum(1, keepdim=True) * particles - kernel @ particles
    return (kernel @ scores + 2 / bandwidth * repulsion) / len(particles)


def stein_norm(particles: Particles, scores: Particles, bandwidth: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the norm of phi in the reproducing kernel Hilbert space of vector fields.

    Its square is (1 / M²) sum_ij [k_ij s_i·s_j + s_i·grad_j k + s_j·grad_i k + tr(grad_i grad_j k)], and the last
    term is k_ij (2 P / h - 4 ||x_i - x_j||² / h²) in P dimensions. The symbols are those of `stein_direction`.
    """
    distances, dimension = squared_distances(particles), particles.shape[1]
    kernel = torch.exp(-distances / bandwidth)
    differences = particles.unsqueeze(1) - particles.unsqueeze(0)  # x_i - x_j
    drift = 2 / bandwidth * kernel * torch.einsum("ijp,ip->ij", differences, scores)  # s_i·grad_j k
    trace = kernel * (2 * dimension / bandwidth - 4 * distances / bandwidth.square())
    total = (kernel * (scores @ scores.T)).sum() + 2 * drift.sum() + trace.sum()
    return total.clamp(min=0).sqrt() / len(particles)
