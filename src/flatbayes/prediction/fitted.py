"""The fitted posterior: predictive distributions by Bayesian model averaging over sampled networks.

The predictive is p(y | x) = 1 / M sum_m p(y | x, w_m), with M networks w_m drawn from the posterior. It is what `fit`
returns, and what is saved and loaded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from flatbayes.core.display import format_entries, format_html_table
from flatbayes.core.input_trees import first_tensor
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.prediction_lock import lock_predictions
from flatbayes.core.randomness import preserve_rng
from flatbayes.data.frame_features import convert_inputs
from flatbayes.data.split_checks import check_image_values
from flatbayes.likelihoods import Likelihood, Predictive
from flatbayes.likelihoods.categorical_predictive import set_abstention
from flatbayes.prediction.artefact import load_posterior, save_posterior
from flatbayes.prediction.deploy import CompiledPosterior, compile_posterior
from flatbayes.prediction.description import describe_fitted
from flatbayes.prediction.draw_source import PredictionCache
from flatbayes.prediction.example_batches import convert_dataset, warn_of_loader
from flatbayes.prediction.inputs import (
    Inputs,
    check_batch_axis,
    check_finite_inputs,
    check_finite_predictions,
    explain_shapes,
    fill_missing_features,
    iter_chunks,
    make_input_tensor,
    match_image_layout,
)
from flatbayes.prediction.network_runner import NetworkRunner
from flatbayes.prediction.placement import (
    PredictionPrecision,
    PreprocessedBatches,
    place_batches,
    resolve_autocast_dtype,
)
from flatbayes.prediction.representation import represent_inputs
from flatbayes.prediction.sampling import NetworkSampler
from flatbayes.prediction.training_inputs import InputDistance

if TYPE_CHECKING:
    from flatbayes.checks import CheckReport


@dataclass
class FittedPosterior(NetworkSampler):
    """A posterior after training, with everything that prediction needs.

    Attributes:
        posterior: The method and its hyperparameters.
        states: Final state of each training run; all runs have the same weight in the mixture.
        likelihood: Turns network outputs into a predictive distribution.
        transform: Applied to inputs before a network, such as the standardisation of the training data.
        statistics_inputs: Batches of training inputs, before the transform, on which running statistics of draws
            are re-estimated; needed where draws change the weights of a network with BatchNorm.
        info: Plain data that is saved with the artefact: class names, the model's class path and the like.
        norm_statistics: Cache of re-estimated running statistics, which is saved with the artefact.
        draw_rule: `DRAW_RULE`; 1 for an artefact of an older schema, which draws the same networks as before.
        training_inputs: Statistics of the training inputs, to find inputs that are unlike them; None for none.

    Examples:
        >>> predictive = fitted.predict(inputs, num_draws=10)
        >>> predictive.mean.shape, predictive.mutual_information.shape
        (torch.Size([100, 10]), torch.Size([100]))
        >>> folder = fitted.save("digits")
        >>> again = FittedPosterior.load(folder)
        >>> torch.equal(again.predict(inputs, num_draws=10).mean, predictive.mean)
        True
    """

    _runner: NetworkRunner = field(default_factory=NetworkRunner, init=False, repr=False, compare=False)
    _prediction_cache: PredictionCache | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        texts = self._describe()
        return f"<FittedPosterior: {texts['posterior']} x {texts['flatness']}, {texts['model']}, {texts['data']}>"

    def _repr_html_(self) -> str:
        return format_html_table("FittedPosterior", (), list(self._describe().items()), num_label_columns=2)

    def summary(self) -> str:
        """Method, network, data, training and cost as text, one line each."""
        return format_entries("FittedPosterior", self._describe())

    def _describe(self) -> dict[str, str]:
        return describe_fitted(self.posterior, self.states, self.info, self.likelihood)

    def to(self, device: torch.device | str) -> Self:
        """Move networks and statistics to another device, in place; see `NetworkSampler.to`."""
        self._runner.release()
        return super().to(device)

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
        precision: PredictionPrecision | None = None,
        compiled: bool = False,
        abstain_below: float | None = None,
    ) -> Predictive:
        """Average the predictions of networks drawn from the posterior.

        The networks run on their device, and predictions come back on that of the inputs: of the tensor, or of the
        first batch of an iterable, such as a loader; for an array and for images in files, on the CPU. Memory grows
        with the number of examples, and with the number of draws if `keep_members` is set. Drawn networks are kept
        for the next call with the same draws, if they have at most 2^24 weights and buffers together (64 MiB in
        single precision), and drawn again after a change of the posterior or its states.

        Args:
            inputs: Raw examples, in the form of the training data: the transform is applied here.
            num_draws: Networks to draw, rounded up to a multiple of the number of training runs; a posterior without
                randomness has one network per run.
            batch_size: Examples per forward pass, fewer where they are large and each position, such as a pixel, has
                a class; batches of an iterable keep their size.
            seed: The same seed draws the same networks.
            keep_members: Also keep the prediction of each network.
            vectorized: Predict with all networks in one call, equal up to rounding. None does so for a few examples
                and small networks, where starting the calls dominates the time, and for networks that differ in the
                last layer only, whose inputs are then computed once.
            show_progress: Show a progress bar on standard error.
            precision: Precision of the forward passes, and of the running statistics that are estimated for them:
                that of the weights (None), that of the `training`, or mixed, `bf16-mixed` or `16-mixed`.
            compiled: Compile the network with torch.compile: slow at first, worth it for many predictions of a large
                network. Random numbers, as of dropout, are then others.
            abstain_below: For classes, the confidence below which predictions abstain (`predictive.abstained`); see
                `flatbayes.calibration.fit_abstention`.

        Raises:
            ValueError: `num_draws` is out of range, the inputs are empty or not finite, the networks cannot be run in
                the precision, or `vectorized` or `compiled` is set and the draws are more than weights.
            RuntimeError: The posterior has collected nothing to draw from yet, or a prediction is not finite.
        """

        def compute() -> Predictive:
            stream = self.stream_predictions(
                inputs,
                num_draws,
                batch_size=batch_size,
                seed=seed,
                keep_members=keep_members,
                vectorized=vectorized,
                show_progress=show_progress,
                precision=precision,
                compiled=compiled,
                abstain_below=abstain_below,
            )
            with lock_predictions():
                predictives = list(stream)
            if not predictives:
                raise ValueError("There is nothing to predict: the inputs are empty.")
            return type(predictives[0]).concatenate(predictives)

        if self._prediction_cache is None:
            return compute()
        options = (num_draws, batch_size, seed, keep_members, vectorized, precision, compiled, abstain_below)
        return self._prediction_cache.get(inputs, options, compute)

    @contextmanager
    def share_predictions(self) -> Iterator[None]:
        """Context in which `predict` computes once for the same inputs, draws and options, for several evaluations.

        A prediction is kept as long as its inputs are. The posterior, and inputs that are arrays, must not be changed
        inside; a change of a tensor is noticed.
        """
        outer = self._prediction_cache
        self._prediction_cache = PredictionCache() if outer is None else outer
        try:
            yield
        finally:
            self._prediction_cache = outer

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
        precision: PredictionPrecision | None = None,
        compiled: bool = False,
        abstain_below: float | None = None,
    ) -> Iterator[Predictive]:
        """Yield the predictions of `predict` one chunk of examples at a time, for inputs that exceed the memory.

        An iterable is read once for all draws. The arguments are those of `predict`. No other thread may predict.
        """
        sample_ids, first_row, calibration = self.sample_ids(num_draws, seed), 0, self.calibration
        names, dtype = self.info.get("feature_names", ()), resolve_autocast_dtype(precision, self.info, self.dtype)
        device: torch.device | None = None
        example_shape = self.info.get("input_shape") or self.info.get("example_shape")
        warn_of_loader(inputs)
        inputs = convert_dataset(inputs, batch_size, is_raw=self.transform is not None)
        inputs = match_image_layout(convert_inputs(inputs, names), self.info.get("input_shape"))
        check_batch_axis(inputs, example_shape)
        predictive_bytes = self.likelihood.count_predictive_bytes(len(sample_ids))
        has_positions = self.likelihood.has_positions
        chunks = iter_chunks(inputs, batch_size, self.input_structure, predictive_bytes, has_positions=has_positions)
        for batches in chunks:
            check_finite_inputs(batches, first_row, names)
            check_image_values(batches[0], self.info.get("image_values"), "The inputs")
            batches = [fill_missing_features(batch, names, self.transform) for batch in batches]
            device = first_tensor(batches[0]).device if device is None else device
            batches = place_batches(batches, self.device)
            prepared = PreprocessedBatches(batches, self.preprocess, len(sample_ids))
            with explain_shapes(example_shape, batches):
                outputs = self._runner.compute_outputs(
                    self,
                    sample_ids,
                    prepared,
                    dtype,
                    vectorized=vectorized,
                    compiled=compiled,
                    show_progress=show_progress,
                )
                predictive = self.likelihood.predictive(outputs, keep_members=keep_members)
                predictive = predictive if calibration is None else calibration.apply(predictive)
            if abstain_below is not None:
                predictive = set_abstention(predictive, abstain_below)
            check_finite_predictions(predictive, first_row)
            first_row += prepared.num_examples
            yield predictive.to(device) if isinstance(predictive, Predictive) else predictive  # a class of the user

    def check(self, data: Any, targets: Any = None, num_draws: int = 30, **options: Any) -> "CheckReport":
        """Check whether the uncertainty can be relied on: `flatbayes.checks.check`, which has the arguments.

        Args:
            data: Labelled examples that were not used for training, in a form that `evaluate` takes.
            targets: As for `evaluate`.
            num_draws: Networks to average.
            **options: Other arguments of `flatbayes.checks.check`.

        Raises:
            ValueError: The targets do not match the predictions, or are missing.
            TypeError: There are no targets.
        """
        from flatbayes.checks import check  # above this package, and used here only

        return check(self, data, targets, num_draws, **options)

    def measure_input_distance(self, inputs: Any) -> InputDistance | None:
        """How far inputs are from those of the training; None where the artefact has no statistics of these.

        For images the network of the first member is run once; the statistics are of its last layer's inputs. They
        are kept by a `fit` to data in memory, or to images in files, and not by one to a loader.

        Args:
            inputs: Raw inputs, a tensor, array or data frame in the form of the training data.
        """
        if self.training_inputs is None:
            return None
        filled = make_input_tensor(inputs, self.info, self.transform)
        return self.training_inputs.measure(filled, lambda batch: represent_inputs(self, batch))

    @property
    def checks(self) -> "CheckReport | None":
        """The report that the command `fit` made on the validation split; None without one."""
        from flatbayes.checks import CheckReport

        data = self.info.get("checks")
        return None if data is None else CheckReport.from_dict(data)

    def compile(self, num_draws: int = 30, *, seed: int = 0) -> CompiledPosterior:
        """Compile one module that predicts as `predict(inputs, num_draws, seed=seed)` does, up to single precision.

        The module returns a dictionary of tensors: for classes `mean`, `entropy` and `mutual_information`, for
        numbers `mean`, `std` and `epistemic_std`. It holds the weights of all draws, so its size is that of the
        network times the number of draws. `export_torch` and `export_onnx` write it to a file.

        Args:
            num_draws: Networks to draw, as in `predict`.
            seed: The same seed draws the same networks.

        Raises:
            ValueError: `num_draws` is out of range, the draws are more than weights (dropout masks, linearised
                networks), or the distribution of the targets has no mean and variance.
            TypeError: The likelihood is user-defined.
            RuntimeError: The posterior has collected nothing to draw from yet.
        """
        return compile_posterior(self, num_draws, seed)

    def save(self, folder: str | Path, *, with_training_inputs: bool = True, with_frozen: bool = True) -> Path:
        """Write the artefact, in place of an earlier one in the folder, and return the folder.

        The artefact of a network with BatchNorm holds batches of training inputs, on which the running statistics of
        further draws are estimated.

        Args:
            folder: The folder; created if necessary.
            with_training_inputs: False leaves these batches out, and the statistics of the training inputs, where
                training inputs must not be passed on. The networks that have been drawn before can then be drawn
                again, and no others.
            with_frozen: False leaves out the parameters that were not trained, such as those of the network below
                adapters: the artefact has a checksum of them, and `load` needs a model with the same ones.

        Raises:
            TypeError: The transform or the posterior cannot be described by plain data.
            OSError: It cannot be written; an earlier artefact in the folder stays as it was.
        """
        return save_posterior(self, Path(folder), with_training_inputs=with_training_inputs, with_frozen=with_frozen)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: nn.Module | Callable[..., nn.Module] | None = None,
        *,
        likelihood: Likelihood | None = None,
        output: OutputSelector | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Read an artefact, whatever the device on which it was fitted.

        Args:
            folder: Folder of the artefact.
            model: The network, or its class or function as for `fit`; may be left out for models of flatbayes.
            likelihood: The likelihood of the fit; needed if it contains user code.
            output: As for `fit`; needed if it was a function there.
            device: Device of the networks; the same seed draws other networks on another kind of device.

        Raises:
            FileNotFoundError: There is no artefact.
            TypeError: The class or function needs other arguments.
            ValueError: The artefact is damaged, or does not fit the model.
        """
        # Building a network draws initial weights; in inference mode torch does not count writes to them.
        with preserve_rng(None), torch.inference_mode(False):
            sampler = load_posterior(Path(folder), model, likelihood, output)
        fitted = cls(**{f.name: getattr(sampler, f.name) for f in fields(NetworkSampler) if f.init})
        fitted._other_statistics = sampler._other_statistics
        return fitted.to(device)
