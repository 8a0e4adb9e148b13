"""The fitted posterior: what users keep, and the only thing needed to predict."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.randomness import spawn_seeds
from flatbayes.data import LazyImages
from flatbayes.likelihoods import Likelihood, Predictive
from flatbayes.posteriors import Posterior
from flatbayes.prediction.deploy import CompiledPosterior, compile_posterior
from flatbayes.prediction.inputs import iter_chunks
from flatbayes.prediction.vmapped import StackedNetworks, should_vectorize, stack_networks

Inputs = Tensor | LazyImages | NDArray[np.generic] | Iterable[Any]
"""All examples in one tensor or array, stored images, or an iterable of batches: `inputs` or `(inputs, ...)`."""


@dataclass
class FittedPosterior:
    """Networks to draw, and how to make one prediction out of them.

    Attributes:
        posterior: The method and its hyperparameters.
        states: What each of its training runs ended in; the mixture weighs them equally.
        likelihood: Makes predictions out of outputs.
        transform: Applied to inputs before a network sees them, such as the standardisation of the training data.
        statistics_inputs: Batches of training inputs, before the transform, on which running statistics of draws
            are re-estimated; needed where draws move the weights of a network with BatchNorm.
        norm_statistics: Running statistics re-estimated so far, by (seed, run, draw); a cache that is kept with
            the artefact.
        info: Plain data that travels with the artefact: class names, the model's description and the like.
    """

    posterior: Posterior
    states: Sequence[State]
    likelihood: Likelihood
    transform: Callable[[Tensor], Tensor] | None = None
    statistics_inputs: Sequence[Tensor] = ()
    info: dict[str, Any] = field(default_factory=dict)
    norm_statistics: dict[tuple[int, int, int], dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _stacked_networks: StackedNetworks | None = field(default=None, init=False, repr=False, compare=False)
    _can_vectorize: bool = field(default=True, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("A fitted posterior needs the state of at least one training run, got none.")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.states[0].model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks; floating-point inputs are converted to it."""
        return next(self.states[0].model.parameters()).dtype

    def to(self, device: torch.device | str) -> Self:
        """Move networks and statistics to another device, in place; a seed draws other networks there."""
        before = self.device.type
        self._stacked_networks = None
        for state in self.states:
            state.to(device)
        if torch.device(device).type != before:
            self.norm_statistics.clear()
        return self

    def predict(
        self,
        inputs: Inputs,
        num_draws: int = 30,
        *,
        batch_size: int = 256,
        seed: int = 0,
        keep_members: bool = False,
        vectorized: bool | None = None,
        show_progress: bool = False,
    ) -> Predictive:
        """Average the predictions of networks drawn from the posterior.

        Memory grows with the number of examples, and with that of draws only if members are kept.

        Args:
            inputs: Examples, as the training data had them: the transform is applied here.
            num_draws: Networks to draw, rounded up to a multiple of the posterior's runs; where draws of a run
                are all the same network, one of each is taken.
            batch_size: Examples a forward pass sees at a time; batches of an iterable are taken as they come.
            seed: The same seed draws the same networks.
            keep_members: Also keep the prediction of each network.
            vectorized: Predict with all networks in one call, equal up to rounding, and keep their weights for the
                next call; None does so for a few examples and small networks, where not drawing again is what counts.
            show_progress: Show a progress bar on standard error.

        Raises:
            ValueError: No draws are asked for, there are no inputs, or one call is asked for where draws are more
                than weights.
            RuntimeError: The posterior has nothing to draw from yet.
        """
        stream = self.stream_predictions(
            inputs,
            num_draws,
            batch_size=batch_size,
            seed=seed,
            keep_members=keep_members,
            vectorized=vectorized,
            show_progress=show_progress,
        )
        parts = list(stream)
        if not parts:
            raise ValueError("There is nothing to predict: the inputs are empty.")
        return type(parts[0]).concatenate(parts)

    def stream_predictions(
        self,
        inputs: Inputs,
        num_draws: int = 30,
        *,
        batch_size: int = 256,
        seed: int = 0,
        keep_members: bool = False,
        vectorized: bool | None = None,
        show_progress: bool = False,
    ) -> Iterator[Predictive]:
        """As `predict`, a chunk of examples at a time: for inputs that do not fit into memory.

        An iterable is read once, whatever the number of draws.
        """
        keys = self.sample_ids(num_draws, seed)
        for batches in iter_chunks(inputs, batch_size):
            outputs: Iterable[Tensor] | None = self._compute_vectorized_outputs(keys, batches, requested=vectorized)
            if outputs is None:
                shown = track(keys, "averaging networks", console=Console(stderr=True), transient=True)
                # A bar that is not shown would still start a thread.
                outputs = (self._compute_outputs(key, batches) for key in (shown if show_progress else keys))
            yield self.likelihood.predictive(outputs, keep_members=keep_members)

    def sample_networks(self, num_draws: int = 30, *, seed: int = 0) -> Iterator[nn.Module]:
        """Networks of the posterior, one after the other; each is valid until the next is asked for."""
        for key in self.sample_ids(num_draws, seed):
            with self.sampled_network(key) as network:
                yield network

    def sample_ids(self, num_draws: int, seed: int = 0) -> list[tuple[int, int, int]]:
        """(seed, run, draw) of each network, the same number for every run.

        Raises:
            ValueError: No draws are asked for.
        """
        check_num_draws(num_draws)
        runs = len(self.states)
        each = -(-num_draws // runs) if self.posterior.stochastic else 1
        return [(seed, run, draw) for draw in range(each) for run in range(runs)]

    @contextmanager
    def sampled_network(self, sample_id: tuple[int, int, int]) -> Iterator[nn.Module]:
        """The network of a key, with running statistics of its own where it needs them."""
        state = self.states[sample_id[1]]
        generator = torch.Generator(self.device).manual_seed(spawn_seeds(*sample_id, count=1)[0])
        with self.posterior.draw(state, generator) as network:
            if sample_id not in self.norm_statistics:
                if not (self.posterior.needs_norm_reestimation and norm_layers(network)):
                    yield network
                    return
                self.norm_statistics[sample_id] = self._reestimate_statistics(network)
            with swap_buffers(network, self.norm_statistics[sample_id]):
                yield network

    def compile(self, num_draws: int = 30, *, seed: int = 0) -> CompiledPosterior:
        """One module that predicts as `predict(inputs, num_draws, seed=seed)` does, up to single precision.

        Its call gives a dictionary of tensors: for classes `mean`, `entropy` and `mutual_information`, for numbers
        `mean`, `std` and `epistemic_std`. It holds the weights of all draws, so it is as many times the size of the
        network. `export_torch` and `export_onnx` write it to a file.

        Args:
            num_draws: Networks to draw, as in `predict`.
            seed: The same seed draws the same networks.

        Raises:
            ValueError: No draws are asked for, or they are more than weights (masks of dropout, linearised networks).
            TypeError: The likelihood is one of your own.
            RuntimeError: The posterior has nothing to draw from yet.
        """
        return compile_posterior(self, num_draws, seed)

    def save(self, folder: str | Path) -> Path:
        """Write the artefact: `posterior.safetensors` and `posterior.json`. Nothing in it is code."""
        from flatbayes.prediction.artefact import save_posterior

        return save_posterior(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        *,
        likelihood: Likelihood | None = None,
        device: torch.device | str = "cpu",
    ) -> "FittedPosterior":
        """Read an artefact, on whatever device it was fitted.

        Args:
            folder: Where it was saved.
            model: The architecture, or a function that builds it; may be left out for models of flatbayes.
            likelihood: The one it was fitted with, if that has code of yours.
            device: Where to predict; a seed draws other networks on another kind of device.

        Raises:
            FileNotFoundError: There is no artefact.
            ValueError: It is damaged, or does not fit the model.
        """
        from flatbayes.prediction.artefact import load_posterior

        return load_posterior(Path(folder), model, likelihood).to(device)

    def _compute_vectorized_outputs(
        self, sample_ids: list[tuple[int, int, int]], batches: Sequence[Tensor], requested: bool | None
    ) -> Tensor | None:
        """Outputs of all networks, shape (draws, examples, outputs), or None where they are better taken in turn."""
        if requested is False or (
            requested is None and not (self._can_vectorize and should_vectorize(self, len(sample_ids), batches))
        ):
            return None
        if self._stacked_networks is None or not self._stacked_networks.is_current(self, sample_ids):
            self._stacked_networks = stack_networks(self, sample_ids)
        if self._stacked_networks is None:
            self._can_vectorize = False
            if requested:
                raise ValueError(
                    f"Draws of {type(self.posterior).__name__} are more than weights, and one call cannot predict "
                    "with all of them: leave out vectorized=True."
                )
            return None
        try:
            return torch.cat(
                [self._stacked_networks.compute_outputs(self.preprocess(batch)) for batch in batches], dim=1
            )
        except RuntimeError as error:
            if requested:
                raise
            if "vmap" in str(error):  # the model does what it cannot; otherwise a plain call tells what is wrong
                self._stacked_networks, self._can_vectorize = None, False
            return None

    @torch.no_grad()
    def _compute_outputs(self, sample_id: tuple[int, int, int], batches: Sequence[Tensor]) -> Tensor:
        with self.sampled_network(sample_id) as network:
            return torch.cat([network(self.preprocess(batch)) for batch in batches])

    def preprocess(self, batch: Tensor) -> Tensor:
        """Inputs as the networks take them: transformed, in their precision and on their device."""
        batch = batch.to(self.device)
        ready = batch if self.transform is None else self.transform(batch)
        return ready.to(self.dtype) if ready.is_floating_point() else ready

    def _reestimate_statistics(self, network: nn.Module) -> dict[str, Tensor]:
        if not self.statistics_inputs:
            raise ValueError(
                "Draws of this posterior have new weights, so the running statistics of their BatchNorm layers "
                "must be estimated on training data, and there is none here: pass `statistics_inputs`, some "
                "batches of training inputs."
            )
        return reestimate_norm_statistics(network, (self.preprocess(batch) for batch in self.statistics_inputs))


def check_num_draws(num_draws: int) -> None:
    """Refuse a prediction without networks, or with more than there is time for.

    Raises:
        ValueError: `num_draws` is below 1 or above a million.
    """
    if num_draws < 1:
        raise ValueError(f"A prediction needs at least 1 draw, got num_draws={num_draws}.")
    if num_draws > 10**6:
        raise ValueError(f"A prediction takes at most a million draws, got num_draws={num_draws}.")
