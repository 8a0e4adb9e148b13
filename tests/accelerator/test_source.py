"""Training steps and predictions make tensors on a named device, and read no values on the host.

`find_calls` lists the calls that may break this. Each is a mistake, or has its reason in `REASONS`.
"""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

import flatbayes

SOURCE = Path(flatbayes.__file__).parent
FACTORIES = frozenset(
    """
    arange as_tensor empty eye from_numpy full linspace logspace ones rand randint randn randperm tensor zeros
    """.split()  # noqa: SIM905
)
"""Functions of torch that make a tensor on the CPU unless they get a device."""
READS = frozenset({"cpu", "item", "numpy", "tolist"})
CONVERSIONS = frozenset({"bool", "float", "int"})
STEPS_AND_PREDICTIONS = (
    "core/buffers.py",
    "core/gradients.py",
    "core/linear_head.py",
    "core/network_calls.py",
    "core/norms.py",
    "core/randomness.py",
    "core/tensor_lists.py",
    "core/weights.py",
    "data/augment.py",
    "data/standardize.py",
    "flatness/*.py",
    "likelihoods/categorical.py",
    "likelihoods/categorical_sums.py",
    "likelihoods/custom.py",
    "likelihoods/dense_categorical.py",
    "likelihoods/distribution_functions.py",
    "likelihoods/distribution_likelihood.py",
    "likelihoods/distribution_mixture.py",
    "likelihoods/families.py",
    "likelihoods/gaussian.py",
    "likelihoods/labels.py",
    "likelihoods/mixture.py",
    "likelihoods/zero_inflated.py",
    "posteriors/*.py",
    "prediction/fitted.py",
    "prediction/inputs.py",
    "prediction/network_runner.py",
    "prediction/outputs.py",
    "prediction/placement.py",
    "prediction/sampling.py",
    "prediction/drawn_networks.py",
    "prediction/varying_layer.py",
    "training/batches.py",
    "training/closure.py",
    "training/engine.py",
    "training/loop.py",
)
"""Files with the functions that run in a training step or a prediction."""

CPU_ONLY = "runs for tensors on the CPU only"
AT_THE_END = "runs once, after training"
BEFORE = "runs once, before training"
MESSAGE = "locates a mistake for an error message"
NUMBER = "converts a number of the host, not a tensor"
INTEGER = "converts integers of NumPy for a seed"
COUNT = "reads the number of snapshots, which is in main memory"
REASONS = {
    "core/buffers.py:find_updated_buffers": "once per epoch: which running statistics have changed",
    "core/gradients.py:*_is_used": "in the first step only: which parameters take part in the loss",
    "core/gradients.py:check_loss": "a closure of the user that returns a number",
    "core/randomness.py:draw_seed": "the generator of a draw; those of flatbayes are on the CPU",
    "core/randomness.py:spawn_*": INTEGER,
    "core/weights.py:write_blockwise": CPU_ONLY,
    "flatness/ascent.py:Perturbation.*": CPU_ONLY,
    "flatness/flatness.py:Flatness.reference_radius": NUMBER,
    "flatness/gradient_average.py:accumulate_gradients": CPU_ONLY,
    "likelihoods/categorical_sums.py:CategoricalSums.add_stacked": CPU_ONLY,
    "likelihoods/custom.py:count_right": "of validation batches, whose loss is read too",
    "likelihoods/dense_categorical.py:*.count_targets": "of validation batches, whose loss is read too",
    "likelihoods/distribution_functions.py:_call_scipy": "scipy computes on the host",
    "likelihoods/distribution_functions.py:find_bounds": NUMBER,
    "likelihoods/distribution_functions.py:is_discrete": NUMBER,
    "likelihoods/distribution_functions.py:set_validation": NUMBER,
    "likelihoods/distribution_likelihood.py:*.fit": BEFORE,
    "likelihoods/distribution_likelihood.py:*._init_function": BEFORE,
    "likelihoods/distribution_likelihood.py:*._find_invalid": CPU_ONLY,
    "likelihoods/distribution_likelihood.py:*.prepare_targets": MESSAGE,
    "likelihoods/distribution_likelihood.py:*._explain_invalid": CPU_ONLY,
    "likelihoods/distribution_likelihood.py:*.target_kind": BEFORE,
    "likelihoods/distribution_mixture.py:DistributionMixture.num_examples": NUMBER,
    "likelihoods/distribution_mixture.py:_widen": CPU_ONLY,
    "likelihoods/distribution_mixture.py:_bisect_counts": "reads once how many steps a search needs",
    "likelihoods/distribution_mixture.py:mixture_entropies": "reads once how many counts a sum has",
    "likelihoods/families.py:compute_quantiles": BEFORE,
    "likelihoods/families.py:standardize_targets": BEFORE,
    "likelihoods/gaussian.py:Gaussian.__post_init__": NUMBER,
    "likelihoods/gaussian.py:Gaussian.fit": BEFORE,
    "likelihoods/gaussian.py:Gaussian.prepare_targets": MESSAGE,
    "likelihoods/labels.py:*": "checks of targets, which are not made on an accelerator",
    "likelihoods/mixture.py:mixture_cdf": "on Apple's GPUs only, which lack the function",
    "likelihoods/mixture.py:mixture_score": "scipy computes on the host",
    "likelihoods/mixture.py:_log_cdf": "scipy computes on the host",
    "likelihoods/mixture.py:_find_quantiles": NUMBER,
    "likelihoods/mixture.py:find_root": CPU_ONLY,
    "posteriors/blob.py:BLoB._get_kl_weight": "reads the number of steps, which is in main memory",
    "posteriors/entropy_mcmc.py:EntropyMCMC.collect": COUNT,
    "posteriors/entropy_mcmc.py:EntropyMCMC.step.*": NUMBER,
    "posteriors/entropy_mcmc.py:EntropyMCMC._*": NUMBER,
    "posteriors/ggn.py:ExampleVjps.*": "an index into a list of the host",
    "posteriors/ggn.py:rounding_tolerance": NUMBER,
    "posteriors/ivon.py:IVON._compute_direction": "reads the number of steps, which is in main memory",
    "posteriors/curvature.py:maximize_evidence": AT_THE_END,
    "posteriors/laplace.py:*": AT_THE_END,
    "posteriors/requirements.py:Trajectory.of": NUMBER,
    "posteriors/linearised.py:_register_forward_mode_rules": "an example for a registration with torch",
    "posteriors/lrt.py:compute_noisy_gradients": "in the first step only: which parameters take part in the loss",
    "posteriors/lrt.py:LRT._get_prior_precisions": NUMBER,
    "posteriors/mc_dropout.py:MCDropout.adapt_to": BEFORE,
    "posteriors/*.py:*.gradients_per_step": NUMBER,
    "posteriors/optimization.py:find_weight_decay": "a parameter of a probe, on the host",
    "posteriors/optimization.py:max_weight_decay": NUMBER,
    "posteriors/optimization.py:resolve_weight_decay": NUMBER,
    "posteriors/prior_precision.py:*": BEFORE,
    "posteriors/sghmc.py:rescale_velocities": NUMBER,
    "posteriors/sgld.py:SGLD._step_on_lattice.*": NUMBER,
    "posteriors/sgld.py:SGLD.describe_state": AT_THE_END,
    "posteriors/sgld.py:add_langevin_noise": NUMBER,
    "posteriors/sgvb.py:SGVB._get_prior_precision": NUMBER,
    "posteriors/snapshot_moments.py:Window.*": COUNT,
    "posteriors/snapshots.py:*": COUNT,
    "posteriors/swag.py:SWAG.*": COUNT,
    "posteriors/swag.py:SnapshotGaussian._gaussian": COUNT,
    "posteriors/tfb.py:TFB.*": NUMBER,
    "prediction/inputs.py:match_image_layout": "inputs of the user, before they are moved",
    "prediction/inputs.py:find_nonfinite_rows": MESSAGE,
    "prediction/inputs.py:check_finite_predictions": MESSAGE,
    "prediction/outputs.py:*Summary.__init__": "runs once: buffers of the module, and a trial of a function",
    "prediction/sampling.py:NetworkSampler.snapshot_index": "an order of the host",
    "training/batches.py:LoaderBatches.*": "random state of NumPy, on the host",
    "training/batches.py:ShuffledBatches.shuffle_indices": "once per epoch: the order is that of the CPU everywhere",
    "training/loop.py:finish_epoch": "once per epoch: the losses of the record",
}
"""Patterns of `file:function`, and why its calls are no mistake."""


class CallFinder(ast.NodeVisitor):
    """Collects calls that make a tensor without a device, or read a value.

    Attributes:
        calls: Line, name of the function that it stands in, and source of each call.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, str]] = []
        self._scopes: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._scopes.append(node.name)
        self.generic_visit(node)
        self._scopes.pop()

    visit_ClassDef = visit_FunctionDef

    def visit_Call(self, node: ast.Call) -> None:
        if reads_or_places(node):
            self.calls.append((node.lineno, ".".join(self._scopes), ast.unparse(node)))
        self.generic_visit(node)


def reads_or_places(call: ast.Call) -> bool:
    """Whether a call makes a tensor without a device, or may read a value of one."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in CONVERSIONS and bool(call.args) and not isinstance(call.args[0], ast.Constant)
    if not isinstance(function, ast.Attribute):
        return False
    is_factory = isinstance(function.value, ast.Name) and function.value.id == "torch" and function.attr in FACTORIES
    has_device = any(keyword.arg == "device" for keyword in call.keywords)
    return function.attr in READS or (is_factory and not has_device)


def find_calls(source: str) -> list[tuple[int, str, str]]:
    """Line, function and source of each call that may be a mistake."""
    finder = CallFinder()
    finder.visit(ast.parse(source))
    return finder.calls


def list_files() -> list[str]:
    """Files of `STEPS_AND_PREDICTIONS`."""
    paths = [path for pattern in STEPS_AND_PREDICTIONS for path in sorted(SOURCE.glob(pattern))]
    return [str(path.relative_to(SOURCE)) for path in paths]


@pytest.mark.parametrize("file", list_files())
def test_steps_and_predictions_name_devices_and_read_nothing(file):
    mistakes = [
        f"{file}:{line}, {function}: {call}"
        for line, function, call in find_calls((SOURCE / file).read_text(encoding="utf-8"))
        if not any(fnmatch(f"{file}:{function}", pattern) for pattern in REASONS)
    ]
    assert not mistakes, (
        "These calls make a tensor on the CPU or wait for the device. Give the tensor a device, or compute with the "
        "tensor instead of its value; if neither is right, add the function with its reason to REASONS.\n"
        + "\n".join(mistakes)
    )


def test_every_reason_and_every_pattern_of_files_is_needed():
    sources = {file: (SOURCE / file).read_text(encoding="utf-8") for file in list_files()}
    places = [f"{file}:{function}" for file, source in sources.items() for _, function, _ in find_calls(source)]
    assert not [pattern for pattern in REASONS if not any(fnmatch(place, pattern) for place in places)]
    assert not [pattern for pattern in STEPS_AND_PREDICTIONS if not any(fnmatch(file, pattern) for file in sources)]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, device=x.device)", 0),
        ("torch.zeros_like(x)", 0),
        ("x.sum().item()", 1),
        ("float(x.sum())", 1),
        ("float('inf')", 0),
        ("x.cpu().numpy()", 2),
        ("math.zeros(3)", 0),
    ],
)
def test_the_rules(source, count):
    calls = find_calls(f"def f(x):\n    return {source}\n")
    assert len(calls) == count
    assert all(call[:2] == (2, "f") for call in calls)
