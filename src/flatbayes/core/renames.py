"""Names of flatbayes 0.1 and what they are called since 0.2.

Artefacts and run folders of 0.1 hold class paths and arguments under their old names; `core.spec` translates them
before it imports anything. Code, configuration files and commands with an old name get an error that gives the new
one.
"""

from collections.abc import Mapping
from typing import Any


def _parse_pairs(text: str) -> dict[str, str]:
    return dict(pair.split(">") for pair in text.split())


RENAMED_PACKAGES = {"flatbayes.comparison": "flatbayes.experiments", "flatbayes.reports": "flatbayes.reporting"}
"""Old package -> new package."""

RENAMED_OBJECTS: dict[str, dict[str, str]] = {
    "flatbayes.certification": _parse_pairs(
        "Certified>CertificationResult Estimate>ErrorEstimates Plan>CertificationConfig promise>format_statement"
    ),
    "flatbayes.core": _parse_pairs("Course>TrainingProgress MakeOptimizer>OptimizerFactory asked_part>subset_batch"),
    "flatbayes.data": _parse_pairs(
        "Dataset>DataSplits NewInputs>InputReader Part>Split Raw>RawSplits Source>DataSource "
        "StoredImages>LazyImages corrupt>corrupt_images corruptions_for>list_corruptions "
        "held_out>load_test_split outside_inputs>load_ood_inputs reader_for>find_reader "
        "shaped_like>match_input_format source_for>make_source white_of>infer_white_value"
    ),
    "flatbayes.diagnostics": _parse_pairs(
        "Grid>LossGrid HessianProducts>HessianVectorProduct MEASURES>SHARPNESS_MEASURES Probe>SharpnessConfig "
        "Slice>LossSlice curvature>compute_curvature hutchinson>estimate_trace "
        "network_sharpness>measure_sharpness plane_of_solutions>compute_solution_plane "
        "posterior_sharpness>measure_posterior_sharpness slices_of_draws>compute_draw_slices"
    ),
    "flatbayes.experiments": _parse_pairs(
        "Measures>EvaluationConfig Paired>PairedComparison Task>ExperimentRun Trial>SelectionTrial "
        "Tuned>TuningResult claim>claim_folder direction>is_higher_better execute>execute_runs "
        "paired>compare_pairs select>select_methods summarise>summarize_runs tune>tune_hyperparameters "
        "usual_ranges>default_ranges"
    ),
    "flatbayes.flatness": _parse_pairs(
        "Every>Periodic Late>Delayed Random>RandomPerturbation Smoothing>GaussianSmoothing"
    ),
    "flatbayes.metrics": _parse_pairs(
        "FAMILIES>METRIC_FAMILIES brier>brier_score coverage>coverage_curve reliability>reliability_bins "
        "risk_coverage>risk_coverage_curve temperature_scaling>fit_temperature tempered>apply_temperature "
        "width>interval_width"
    ),
    "flatbayes.models": _parse_pairs("with_head>replace_head"),
    "flatbayes.posteriors": _parse_pairs("Point>MAP"),
    "flatbayes.prediction": _parse_pairs("recalibrated>evaluate_recalibration"),
    "flatbayes.reporting": _parse_pairs("readme_picture>write_summary_figure"),
    "flatbayes.theory": _parse_pairs(
        "best_prior_scale>select_prior_scale certificate>compute_certificate "
        "certificate_of_draws>compute_certificate_from_draws expected_gap>mean_sharpness "
        "expected_worst_gradient>worst_loss_expectation_gradient expected_worst_loss>worst_loss_expectation "
        "gibbs>gibbs_posterior held_out_bound>holdout_bound jeffreys>jeffreys_divergence kl>grid_kl "
        "mean_bound>betting_mean_bound norm_tail>norm_tail_probability normalised>normalize_density "
        "objective>variational_objective penalised_worst_loss>soft_worst_loss prior_scales>prior_scale_grid "
        "sample>sample_cells sharpness_aware>sharpness_aware_posterior "
        "worst_expected_gradient>worst_expected_loss_gradient worst_offset>worst_perturbation"
    ),
    "flatbayes.training": _parse_pairs(
        "Curves>History Lines>ConsoleLogger Logged>MetricLogger Recipe>TrainingConfig Watch>Callback "
        "Watches>CallbackList rehearse>dry_run"
    ),
}
"""Package (its new name) -> old name of an exported class or function -> new name."""

RENAMED_ARGUMENTS: dict[str, dict[str, str]] = {
    "flatbayes.certification.CertificationConfig": _parse_pairs(
        "prior_share>prior_fraction draws>num_draws temperature>kl_weight trial_draws>num_trial_draws "
        "test_draws>num_test_draws smallest_probability>min_probability"
    ),
    "flatbayes.certification.CertificationResult": _parse_pairs(
        "num_prior>num_prior_examples held_out_bound>holdout_bound"
    ),
    "flatbayes.core.State": _parse_pairs("in_main_memory>cpu_statistics"),
    "flatbayes.core.TrainingProgress": _parse_pairs("kept>flatness_state"),
    "flatbayes.data.CIFAR10C": _parse_pairs("examples>max_examples"),
    "flatbayes.data.InputReader": _parse_pairs("keep>keep_columns"),
    "flatbayes.data.LazyImages": _parse_pairs("encoded>read_encoded"),
    "flatbayes.data.RawSplits": _parse_pairs("all>unsplit splits>standard_splits"),
    "flatbayes.diagnostics.LossSurface": _parse_pairs("as_it_is>keep_mode"),
    "flatbayes.diagnostics.PosteriorSharpness": _parse_pairs("probe>config"),
    "flatbayes.diagnostics.SharpnessConfig": _parse_pairs(
        "random_starts>num_random_starts directions>num_directions eigenvalues>num_eigenvalues "
        "trace_probes>num_trace_probes"
    ),
    "flatbayes.estimators.FlatBayesClassifier": _parse_pairs("recipe>config"),
    "flatbayes.estimators.FlatBayesRegressor": _parse_pairs("recipe>config"),
    "flatbayes.experiments.Comparison": _parse_pairs("recipe>config seeds>num_seeds part>split measures>evaluations"),
    "flatbayes.experiments.EvaluationConfig": _parse_pairs(
        "outside>ood sharpness>sharpness_rho examples>max_examples draws>num_sharpness_draws"
    ),
    "flatbayes.experiments.ExperimentRun": _parse_pairs(
        "recipe>config part>split called>posterior_name measures>evaluations"
    ),
    "flatbayes.experiments.Method": _parse_pairs("recipe>config_overrides"),
    "flatbayes.experiments.PairedComparison": _parse_pairs(
        "n>num_seeds bootstrap>bootstrap_interval effect>effect_size flat_better>num_flat_better "
        "plain_better>num_plain_better wins>winner"
    ),
    "flatbayes.experiments.SelectionTrial": _parse_pairs("twin>variant chosen>is_best"),
    "flatbayes.experiments.TuningResult": _parse_pairs("best>best_run"),
    "flatbayes.flatness.ASAM": _parse_pairs("fresh_noise>resample_noise part>ascent_batch_fraction"),
    "flatbayes.flatness.FisherSAM": _parse_pairs("fresh_noise>resample_noise"),
    "flatbayes.flatness.LESAM": _parse_pairs("loss>loss_budget fresh_noise>resample_noise"),
    "flatbayes.flatness.LookSAM": _parse_pairs("every>period fresh_noise>resample_noise"),
    "flatbayes.flatness.Periodic": _parse_pairs("steps>period"),
    "flatbayes.flatness.PosteriorSAM": _parse_pairs("fresh_noise>resample_noise"),
    "flatbayes.flatness.RandomPerturbation": _parse_pairs("fresh_noise>resample_noise"),
    "flatbayes.flatness.SAM": _parse_pairs("fresh_noise>resample_noise part>ascent_batch_fraction"),
    "flatbayes.likelihoods.Custom": _parse_pairs("reads>output_likelihood"),
    "flatbayes.posteriors.SGHMC": _parse_pairs("keep>max_snapshots"),
    "flatbayes.posteriors.SGLD": _parse_pairs("keep>max_snapshots"),
    "flatbayes.posteriors.SGVB": _parse_pairs("bayesian>params"),
    "flatbayes.posteriors.SWAG": _parse_pairs("bayesian>params"),
    "flatbayes.prediction.CompiledPosterior": _parse_pairs("prepare>preprocess"),
    "flatbayes.prediction.FittedPosterior": _parse_pairs("statistics_of_draws>norm_statistics"),
    "flatbayes.theory.GridPosterior": _parse_pairs("cell>cell_volume"),
    "flatbayes.training.CallbackList": _parse_pairs("watches>callbacks"),
    "flatbayes.training.Checkpoints": _parse_pairs(
        "steps>every_n_steps seconds>min_interval_seconds keep>max_to_keep"
    ),
    "flatbayes.training.ConsoleLogger": _parse_pairs("seconds>min_interval_seconds"),
    "flatbayes.training.Cosine": _parse_pairs("last>end_factor"),
    "flatbayes.training.Cyclical": _parse_pairs("times>num_cycles last>end_factor"),
    "flatbayes.training.MetricLogger": _parse_pairs("every>every_n_steps"),
    "flatbayes.training.SWALinear": _parse_pairs("high_until>decay_start low_from>decay_end low>end_factor"),
    "flatbayes.training.TrainingConfig": _parse_pairs(
        "accelerator>distribution.accelerator accumulate>optimization.accumulation_steps "
        "ascent>distribution.ascent_scope channels_last>precision.channels_last "
        "clip_norm>optimization.clip_norm collect_from>collection.start_fraction "
        "collect_per_epoch>collection.snapshots_per_epoch compile>precision.compile "
        "devices>distribution.devices label_smoothing>optimization.label_smoothing "
        "members>distribution.members precision>precision.mode statistics_batches>collection.num_norm_batches "
        "strategy>distribution.strategy validate_every>validate_every_n_epochs validations>num_validations"
    ),
}
"""New class path -> old name of an argument -> new name; a dotted name is an option of a group."""

RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "certify": _parse_pairs(
        "twin>compare_plain prior_share>prior_fraction draws>num_draws temperature>kl_weight "
        "trial_draws>num_trial_draws test_draws>num_test_draws smallest_probability>min_probability"
    ),
    "compare": _parse_pairs(
        "outside>ood draws>num_draws seeds>num_seeds part>split measures>evaluations examples>max_examples "
        "sharpness_draws>num_sharpness_draws jobs>num_jobs"
    ),
    "diagnose": _parse_pairs("part>split examples>max_examples draws>num_draws steps>num_grid_points"),
    "evaluate": _parse_pairs("draws>num_draws part>split"),
    "export": _parse_pairs("draws>num_draws"),
    "fit": _parse_pairs("draws>num_draws"),
    "predict": _parse_pairs("draws>num_draws keep>keep_columns image>image_column"),
    "shift": _parse_pairs("draws>num_draws corrupted>corrupted_folder examples>max_examples"),
    "tune": _parse_pairs("trials>num_trials seeds>num_seeds draws>num_draws"),
}
"""Command -> old name of an option of its own (without dashes) -> new name; those of classes are in
`RENAMED_ARGUMENTS`."""

RENAMED_VALUES = {"members": {"together": "vectorized"}}
"""New name of an argument -> old value -> new value."""

REMOVED_OBJECTS = {
    f"flatbayes.data.{name}": f"use --data torchvision.datasets.{name} --data.root FOLDER"
    for name in ("FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN")
} | {"flatbayes.paper.few.FewTests": "in a checkout of the repository it is reproduction.table_config.SourceSubset"}
"""Class path of what 0.2 has no longer -> what to do instead."""


def translate_path(path: str) -> str:
    """The class path as it is called in this version; a path without an old name comes back unchanged."""
    package, _, name = path.rpartition(".")
    package = RENAMED_PACKAGES.get(package, package)
    if package == "flatbayes":
        return f"flatbayes.{_TOP_LEVEL.get(name, name)}"
    name = RENAMED_OBJECTS.get(package, {}).get(name, name)
    return f"{package}.{name}" if package else name


def translate_spec(path: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A class path and its arguments as they are called in this version.

    Args:
        path: Dotted path of a class or function.
        arguments: Its arguments by name.

    Returns:
        The new path, and the arguments by their new names, in the same order. An argument under its new name has
        priority over the same one under its old name.
    """
    path = translate_path(path)
    renamed = {old: new for old, new in RENAMED_ARGUMENTS.get(path, {}).items() if "." not in new}
    return path, {
        renamed.get(name, name): value for name, value in arguments.items() if renamed.get(name) not in arguments
    }


def translate_training_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `TrainingConfig` from the run folder of any version, in the form that `with_options` takes.

    Args:
        options: Values by name; those of a group in a mapping, or in folders of 0.1 at the top.
    """
    renamed = RENAMED_ARGUMENTS["flatbayes.training.TrainingConfig"]
    translated = {}
    for name, value in options.items():
        is_group = isinstance(value, Mapping)  # `precision` is an option in 0.1 and a group in 0.2
        new_value = RENAMED_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        translated[name if is_group else renamed.get(name, name)] = new_value
    return translated


def explain_name(name: str) -> str | None:
    """One sentence about a class or function that has another name in this version, or none.

    Args:
        name: A dotted path, or the bare name of anything that is exported.

    Returns:
        Such as `Recipe was renamed to TrainingConfig in 0.2.`; None if the name is not an old one.
    """
    bare = name.rpartition(".")[2]
    if name in REMOVED_OBJECTS or f"flatbayes.data.{name}" in REMOVED_OBJECTS:
        return f"{bare} was removed in 0.2: {REMOVED_OBJECTS.get(name) or REMOVED_OBJECTS[f'flatbayes.data.{name}']}."
    new = translate_path(name).rpartition(".")[2] if "." in name else _ANYWHERE.get(name, name)
    return f"{bare} was renamed to {new} in 0.2." if new != bare else None


def explain_option(option: str, command: str | None = None, path: str | None = None) -> str | None:
    """One sentence about an option or a key of a configuration that has another name in this version, or none.

    Args:
        option: Its name without dashes, such as `part` or `flatness.part`.
        command: The command that was given, whose own options are looked up.
        path: Class path that the option is an argument of; None looks in all classes.

    Returns:
        Such as `flatness.part was renamed to flatness.ascent_batch_fraction in 0.2.`; None if it is not an old name.
    """
    group, dot, name = option.rpartition(".")
    if not group and command is not None and name in RENAMED_OPTIONS.get(command, {}):
        new = RENAMED_OPTIONS[command][name]
    elif path is not None:
        new = RENAMED_ARGUMENTS.get(translate_path(path), {}).get(name, name)
    else:
        new = " or ".join(sorted({names[name] for names in _OPTION_GROUPS if name in names})) or name
    return f"{option} was renamed to {group}{dot}{new} in 0.2." if new != name else None


_TOP_LEVEL = {
    old: new
    for package in ("core", "data", "flatness", "posteriors", "training")
    for old, new in RENAMED_OBJECTS[f"flatbayes.{package}"].items()
    if old in {"Course", "Dataset", "Every", "Late", "Part", "Point", "Random", "Recipe", "Smoothing", "Source"}
}
_ANYWHERE = {old: new for names in RENAMED_OBJECTS.values() for old, new in names.items()} | _TOP_LEVEL
_OPTION_GROUPS = [
    names
    for path, names in RENAMED_ARGUMENTS.items()
    if not path.startswith(("flatbayes.certification.", "flatbayes.experiments."))
]
