"""Deliberate one-line faults in training, prediction and experiments, each with the test that must detect it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: Source file, relative to `src/flatbayes`.
        original: Text that occurs exactly once in the file.
        mutated: Text that replaces it.
        test: Pytest node id of the test that must fail.
    """

    file: str
    original: str
    mutated: str
    test: str


_FIT, _CHECKPOINT = "tests/training/test_fit.py", "tests/training/test_checkpoint.py"
_FITTED, _STATISTICS = "tests/prediction/test_fitted.py", "tests/experiments/test_statistics.py"
_SELECTION = "tests/experiments/test_selection.py::test_the_best_plain_setting_and_then_the_best_radius"
_PRUNED = f"{_CHECKPOINT}::test_old_checkpoints_are_pruned_and_all_removed"
_DISAGREE = "tests/likelihoods/test_categorical.py::test_two_members_that_disagree"
_UNDERFLOW = "tests/likelihoods/test_categorical.py::test_log_probabilities_are_exact_where_probabilities_underflow"

MUTANTS = (
    Mutant("training/loop.py", "schedule.factor(progress.step,", "schedule.factor(progress.step + 1,",
           f"{_FIT}::test_the_optimizer_steps_with_the_learning_rates_of_the_schedule"),
    Mutant("training/data.py", "config.collection.num_norm_batches) * size",
           "config.collection.num_norm_batches + 1) * size", f"{_FIT}::test_num_norm_batches_are_kept"),
    Mutant("training/loader_data.py", "islice(iter(self.loader), config.collection.num_norm_batches)",
           "islice(iter(self.loader), config.collection.num_norm_batches + 1)",
           f"{_FIT}::test_num_norm_batches_are_kept"),
    Mutant("training/batches.py", "spawn_seeds(Stream.AUGMENTATION,", "spawn_seeds(Stream.DATA_ORDER,",
           f"{_FIT}::test_augmentation_and_order_have_independent_seeds"),
    Mutant("training/engine.py", 'group["lr"] = base_lr * factor', 'group["lr"] = self.base_lrs[0] * factor',
           f"{_FIT}::test_the_optimizer_steps_with_the_learning_rates_of_the_schedule"),
    Mutant("training/run.py", "is_collection_step(step, steps", "is_collection_step(step + 1, steps",
           f"{_FIT}::test_snapshots_are_collected_after_the_configured_steps"),
    Mutant("training/loop.py", "status.loss_sum / len(run.batches)", "status.loss_sum / (len(run.batches) + 1)",
           f"{_FIT}::test_the_loss_of_an_epoch_is_the_mean_over_its_steps"),
    Mutant("training/loop.py", "validates = epoch + 1 in", "validates = epoch in", f"{_FIT}::test_curves_and_logs"),
    Mutant("training/closure.py", "loss * (self._count_labelled(y) / max_one(self._count_labelled(targets)))",
           "loss / num_micro_batches",
           f"{_FIT}::test_accumulation_is_the_whole_batch"),
    Mutant("training/run_factory.py", "spawn_seed(Stream.INITIAL_WEIGHTS, self.seed, member)",
           "spawn_seed(Stream.INITIAL_WEIGHTS, self.seed, 0)",
           f"{_FIT}::test_twins_share_everything_but_flatness"),
    Mutant("training/data.py", "share = val if world", "share = self.splits.train if world",
           "tests/training/test_regression.py::test_the_curve_s_validation_loss_is_the_nll"),
    Mutant("training/checkpoint.py", "max_to_keep :]", "max_to_keep + 1 :]", _PRUNED),
    Mutant("training/checkpoint.py", "time.monotonic() - self._last_write_time >= wait",
           "time.monotonic() - self._start_time >= wait",
           f"{_CHECKPOINT}::test_they_are_written_no_oftener_than_worth_it"),
    Mutant("prediction/sampling.py", "return [(seed, member, draw)", "return [(seed, member, 0)",
           f"{_FITTED}::test_every_run_has_the_same_number_of_draws"),
    Mutant("prediction/sampling.py", "-(-num_draws // num_members)", "(num_draws // num_members)",
           f"{_FITTED}::test_every_run_has_the_same_number_of_draws"),
    Mutant("prediction/sampling.py", "make_generator(Stream.DRAW, *sample_id,",
           "make_generator(Stream.DRAW, *sample_id[::2],",
           f"{_FITTED}::test_members_have_draws_of_their_own"),
    Mutant("prediction/sampling.py", "batch = batch if transform is None else transform(batch)",
           "batch = batch",
           f"{_FITTED}::test_predicts_the_average_of_its_draws"),
    Mutant("prediction/fitted.py", "iter_chunks(inputs, batch_size,", "iter_chunks(inputs, 256,",
           f"{_FITTED}::test_invalid_arguments_are_refused"),
    Mutant("likelihoods/categorical_sums.py", "torch.logaddexp(log_probs, shifted - log_sums, out=log_probs)",
           "log_probs += shifted - log_sums", _UNDERFLOW),
    Mutant("likelihoods/categorical_sums.py", "_squared_deviations[rows].div_(self.count)",
           "_squared_deviations[rows].div_(self.count - 1)", _DISAGREE),
    Mutant("prediction/outputs.py", "means.var(0, correction=0)", "means.var(0, correction=1)",
           "tests/prediction/test_deploy.py::test_moments_are_in_the_unit_of_the_targets"),
    Mutant("experiments/statistics.py", "[b - a for a, b in", "[a - b for a, b in",
           f"{_STATISTICS}::test_paired_interval_is_students"),
    Mutant("experiments/summary.py", "if row.family == family]", "if True]",
           f"{_STATISTICS}::test_p_values_are_adjusted_within_their_family"),
    Mutant("experiments/selection.py", 'split="val"', 'split="test"', _SELECTION),
    Mutant("experiments/selection.py", "max if higher_is_better else min", "min if higher_is_better else max",
           _SELECTION),
    Mutant("experiments/tuning.py", 'seed=seed, split="val")', 'seed=seed, split="test")',
           "tests/experiments/test_tuning.py::test_trials_are_within_the_ranges_and_continue_an_earlier_call"),
    Mutant("experiments/run.py", "_load_data(self.source, self.seed, ", "_load_data(self.source, 0, ",
           "tests/experiments/test_run.py::test_the_data_split_has_the_seed_of_the_run"),
)  # fmt: skip
