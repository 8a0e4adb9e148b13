"""Set-up of a fit: devices, the order of the members, identity for checkpoints, and the fitted posterior."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flatbayes.core import State
from flatbayes.core.accelerators import describe_device
from flatbayes.core.adapters import share_frozen_parameters
from flatbayes.core.buffers import norm_layers
from flatbayes.core.optional import get_version
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.data.fingerprint import FINGERPRINT_KEY
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.representation import fit_training_inputs
from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.distributed.fsdp import check_fsdp
from flatbayes.training.distributed.launch import get_fabric_process_group, make_fabric
from flatbayes.training.draw_choice import CHOICE_KEY, apply_choices, check_criteria, choose_draw_options
from flatbayes.training.fabric import Fabric
from flatbayes.training.graph_capture import check_graph_capture
from flatbayes.training.identity import describe_object
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.vectorization_trial import should_vectorize


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """What a fit has before its first step.

    `groups` are the members of the ensemble that are trained in one run, in order. `identity` is plain data that
    tells this training from others, and `info` the metadata of the fitted posterior.
    """

    factory: RunFactory
    fabric: Fabric
    world: ProcessGroupInfo
    groups: Sequence[Sequence[int]]
    identity: dict[str, Any]
    info: dict[str, Any]

    @staticmethod
    def create(
        factory: RunFactory, model_spec: dict[str, Any] | None, checkpoints: Checkpoints | None
    ) -> "TrainingSetup":
        """Join the process group, and decide which members are vectorized.

        Raises:
            ValueError: The configuration cannot be used with the posterior, the data, the devices or the checkpoints.
        """
        config, posterior, training_data = factory.config, factory.posterior, factory.training_data
        fabric = make_fabric(config)
        world, members = get_fabric_process_group(fabric), config.distribution.members
        if members == "workers" and (world.size > 1 or isinstance(training_data, LoaderData)):
            raise ValueError(
                "Members in workers are trained on one device each, and from data rather than from a loader."
            )
        check_graph_capture(posterior, factory.flatness, config, fabric.device, world.size)
        check_criteria(posterior, factory.likelihood)
        if config.distribution.strategy == "fsdp":
            check_fsdp(posterior, config, world, checkpoints, factory.flatness)
        is_vectorized, reason = should_vectorize(factory, posterior.num_members)
        indices = range(posterior.num_members)
        info: dict[str, Any] = {"flatbayes": get_version(), "model": model_spec}
        fingerprint, start = training_data.fingerprint, None
        if checkpoints is not None:
            start = factory.warm_start.fingerprint(training_data.transform, posterior.num_members)
        components = {name: getattr(factory, name) for name in ("posterior", "flatness", "likelihood")}
        identity = {
            **info,
            **{name: describe_object(value) for name, value in (components | vars(factory.config)).items()},
            "seed": factory.seed,
            "data": fingerprint,
            "start": start,
            "processes": world.size,
        }
        if factory.auto_flatness is not None:
            identity["flatness"] = describe_object(factory.auto_flatness)
        if factory.default_optimizer is not None:
            identity["optimizer"] = info["optimizer"] = describe_object(factory.default_optimizer)
        info |= {"device": describe_device(fabric.device), "precision": config.precision.mode}
        if config.precision.channels_last is not None:
            info["channels_last"] = config.precision.channels_last
        if factory.warm_start.head_outputs is not None:
            info["new_head"] = True
        if members in ("auto", "vectorized"):
            info["members"] = "vectorized" if is_vectorized else f"one by one: {reason}"
        groups = [list(indices)] if is_vectorized else [[member] for member in indices]
        info |= training_data.info | {FINGERPRINT_KEY: fingerprint}
        return TrainingSetup(factory, fabric, world, groups, identity, info)

    def make_fitted(self, states: Sequence[State], **info: Any) -> FittedPosterior:
        """The fitted posterior."""
        factory = self.factory
        for state in states:
            state.optimizer = None
        share_frozen_parameters([state.model for state in states])
        is_needed = factory.posterior.needs_norm_reestimation and any(
            norm_layers(state.model, state.updated_buffers) for state in states
        )
        with seeded_rng(spawn_seed(Stream.EXAMPLES, factory.seed), None):  # of a shuffled loader
            inputs = factory.training_data.sample_inputs(factory.config, factory.seed) if is_needed else ()
        fitted = FittedPosterior(
            posterior=factory.posterior,
            states=states,
            likelihood=factory.likelihood,
            transform=factory.training_data.transform,
            statistics_inputs=inputs,
            info=self.info | info,
        )
        raw_inputs = factory.training_data.raw_inputs
        fitted.training_inputs = None if raw_inputs is None else fit_training_inputs(fitted, raw_inputs)
        return fitted

    def make_final(self, states: Sequence[State], training: dict[str, Any], **info: Any) -> FittedPosterior:
        """The fitted posterior, with the draw options that are "auto" chosen on the validation examples."""
        fitted, factory = self.make_fitted(states, training=training, **info), self.factory
        choices = self.world.read_on_main(
            lambda: choose_draw_options(
                fitted,
                factory.training_data,
                can_predict=factory.likelihood.has_predictive,
                is_automatic=factory.is_automatic,
            )
        )
        if not choices:
            return fitted
        training[CHOICE_KEY] = choices
        return apply_choices(fitted, choices)
