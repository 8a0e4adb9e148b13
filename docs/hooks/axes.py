"""Tables of the two axes: posteriors, flatness, and the pairs that `fit` refuses.

Pages of the site get them at every build. `python docs/hooks/axes.py` writes the names of all methods into README.md,
between its marks.
"""

import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

import flatbayes.flatness
import flatbayes.posteriors
from flatbayes import MLP, Closure, Flatness, Laplace, MCDropout, Posterior, TrainingConfig, TrainingProgress
from flatbayes.integrations.tracker import TrackerConfig
from flatbayes.training.compatibility import check_compatibility

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
REPOSITORY = "https://github.com/flatbayes/flatbayes/blob/main"
TEST_FOLDERS = ("posteriors", "flatness", "exact")
GENERAL_TESTS = ("test_draw_options", "test_nuisance", "test_schedules")
"""Files that name many methods, and are about something else."""
TESTS_OF_OTHERS = {"Ensemble": "training/test_vectorization_trial.py", "Plain": "laws/test_flatness.py"}
"""Files of tests of methods without one in these folders."""
START, END = "<!-- axes, written by docs/hooks/axes.py -->", "<!-- end of axes -->"


def list_methods(package: object, base: type) -> list[type]:
    """Exported methods of an axis in alphabetical order, the plain baseline first."""
    exports = [getattr(package, name) for name in package.__all__]  # type: ignore[attr-defined]
    methods = [kind for kind in exports if isinstance(kind, type) and issubclass(kind, base) and kind is not base]
    return sorted(methods, key=lambda kind: (kind.__name__ not in ("MAP", "Plain"), kind.__name__.lower()))


def render_posteriors() -> str:
    """Table of posteriors, with the number of networks that a prediction averages."""
    rows = ["| posterior | approximation | networks in a prediction |", "|---|---|---|"]
    for kind in list_methods(flatbayes.posteriors, Posterior):
        posterior = kind()
        requirements = posterior.snapshot_requirements
        if posterior.num_members > 1:
            networks = "one per member, or several draws of each"
        elif not posterior.stochastic:
            networks = "1"
        elif requirements.max_used and requirements.min_count == 1:
            networks = "snapshots"
        else:
            networks = "any number of draws"
        rows.append(f"| `{kind.__name__}` | {summarize(kind)} | {networks} |")
    return "\n".join(rows)


def render_flatness() -> str:
    """Table of flatness methods with their cost."""
    rows = [
        f"| `{kind.__name__}` | {summarize(kind)} | {kind().gradients_per_step:.2g} |"
        for kind in list_methods(flatbayes.flatness, Flatness)
    ]
    return "\n".join(["| flatness | gradient | gradients a step |", "|---|---|---|", *rows])


def render_methods() -> str:
    """Table of all methods: axis, gradients a step, memory, the tests of their mathematics, when to use them."""
    rows = ["| method | axis | gradients a step | memory | exact test | use it |", "|---|---|---:|---:|---|---|"]
    for package, base in ((flatbayes.posteriors, Posterior), (flatbayes.flatness, Flatness)):
        axis = package.__name__.rpartition(".")[2]
        for kind in list_methods(package, base):
            gradients, memory = measure_posterior(kind()) if base is Posterior else measure_flatness(kind())
            path = find_exact_test(kind)
            test = f"[{path.stem}]({REPOSITORY}/{path.relative_to(ROOT).as_posix()})"
            cells = (f"`{kind.__name__}`", axis, f"{gradients:.3g}", f"{memory:.3g}", test, find_usage(kind))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def measure_posterior(posterior: Posterior) -> tuple[float, float]:
    """Gradients of a step, and tensors that a training keeps beside weights and gradients, in copies of the weights.

    Of all members together, with the default optimizer, after a step and as many snapshots as are stored.

    Args:
        posterior: The posterior, with its default options.
    """
    torch.manual_seed(0)
    network, calls = make_network(dropout=0.1), [0]
    num_weights = count_entries(network.parameters())
    state = posterior.init(network, posterior.default_optimizer, 100)
    closure, model = make_closure(state.model, calls), state.model
    posterior.step(state, closure)
    for _ in range(posterior.snapshot_requirements.max_used or 0):
        posterior.collect(state)
    optimizer_states = [] if state.optimizer is None else state.optimizer.state.values()
    kept = count_entries(value for entry in optimizer_states for value in entry.values())
    kept += count_entries(state.statistics.values()) + count_entries(model.parameters()) - num_weights
    return calls[0] * posterior.num_members, posterior.num_members * (kept / num_weights + 1) - 1


def measure_flatness(flatness: Flatness) -> tuple[float, float]:
    """Gradients of a step, and tensors that it keeps between steps, in copies of the weights.

    Args:
        flatness: The flatness, with its default options.
    """
    torch.manual_seed(0)
    network, progress = make_network(), TrainingProgress()
    with suppress(ValueError, RuntimeError):  # a flatness for variational posteriors only
        for _ in range(2):
            flatness(make_closure(network, [0]), network, progress)()
            progress.step += 1
    kept = count_entries(progress.flatness_state.values())
    return flatness.gradients_per_step, kept / count_entries(network.parameters())


def make_network(dropout: float = 0.0) -> nn.Module:
    """A network that is large enough for counters and the like not to count."""
    return MLP((10,), 10, hidden=(200, 200), dropout=dropout)


def make_closure(network: nn.Module, calls: list[int]) -> Closure:
    """A closure on a few examples, which counts its calls."""
    inputs, targets = torch.randn(20, 10), torch.arange(20) % 10

    def closure() -> Tensor:
        calls[0] += 1
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        return loss.detach()

    return closure


def count_entries(tensors: Iterable[object]) -> int:
    """Number of entries of all tensors."""
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))


def find_exact_test(kind: type) -> Path:
    """The file of tests of the method's module, or else the one that names the method most often."""
    paths = [path for folder in TEST_FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    if kind.__name__ in TESTS_OF_OTHERS:
        return ROOT / "tests" / TESTS_OF_OTHERS[kind.__name__]
    own = [path for path in paths if path.stem == f"test_{kind.__module__.rpartition('.')[2]}"]
    if own:
        return own[0]
    paths = [path for path in paths if path.stem not in GENERAL_TESTS]
    return max(paths, key=lambda path: len(re.findall(rf"\b{kind.__name__}\b", path.read_text(encoding="utf-8"))))


def find_usage(kind: type) -> str:
    """When to use a method: the paragraph `Use it ...` of its docstring, without these words; empty without one."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    usage = next((text for text in paragraphs if text.startswith("Use it ")), "Use it ")
    return usage.removeprefix("Use it ").replace("\n", " ").removesuffix(".")


def render_refused_pairs() -> str:
    """Table of the pairs with default options that `fit` refuses, and why."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    posteriors = list_methods(flatbayes.posteriors, Posterior)
    flatness_methods = list_methods(flatbayes.flatness, Flatness)
    for kind in flatness_methods:
        refused = defaultdict(list)
        for posterior_kind in posteriors:
            try:
                check_compatibility(posterior_kind(), kind(), TrainingConfig())
            except ValueError as error:
                refused[find_reason(str(error))].append(posterior_kind.__name__)
        for reason, names in refused.items():
            reasons[", ".join(f"`{name}`" for name in names), reason].append(f"`{kind.__name__}`")
    num_refused = sum(names.count("`") // 2 * len(kinds) for (names, _), kinds in reasons.items())
    rows = [
        f"With default options, `fit` refuses {num_refused} of the {len(posteriors) * len(flatness_methods)} pairs:",
        "",
        "| posterior | flatness | reason |",
        "|---|---|---|",
    ]
    rows += [f"| {names} | {', '.join(kinds)} | {reason} |" for (names, reason), kinds in reasons.items()]
    return "\n".join(rows)


def render_integrations() -> str:
    """Table of the loops in which each posterior trains, and under which conditions."""
    rows = ["| posterior | Lightning, transformers | own loop, Accelerate | conditions |", "|---|---|---|---|"]
    for kind in list_methods(flatbayes.posteriors, Posterior):
        posterior = kind()
        try:
            TrackerConfig(posterior)
        except ValueError as error:
            reason = str(error).split(". ")[0]
            rows.append(f"| `{kind.__name__}` | refused | one loop per member | {reason}: use `join_posteriors` |")
        else:
            rows.append(f"| `{kind.__name__}` | yes | yes | {'; '.join(list_conditions(posterior)) or 'none'} |")
    return "\n".join(rows)


def list_conditions(posterior: Posterior) -> list[str]:
    """What a posterior requires of the loops of Lightning and transformers."""
    conditions = []
    options = getattr(posterior.default_optimizer, "keywords", {})
    if options.get("momentum") == 0:
        conditions.append("`torch.optim.SGD` without momentum")
    if "weight_decay" not in options:
        conditions.append("no weight decay")
    if not (posterior.tolerates_skipped_steps and posterior.uses_gradient_only):
        conditions.append("no float16 with a loss scaler")
    if not posterior.uses_gradient_only:
        conditions.append("in Lightning `accumulate_grad_batches=1`")
    if isinstance(posterior, Laplace):
        conditions.append("one positive weight decay for all weights, not that of AdamW, or `prior_precision`")
        conditions.append("the curvature is computed in `make_posterior`, from the training examples")
    if isinstance(posterior, MCDropout):
        conditions.append("dropout in the network; with `rate=` in Lightning `accumulate_grad_batches=1`")
    if posterior.snapshot_requirements.min_count:
        count = posterior.snapshot_requirements.min_count
        conditions.append(f"at least {count} snapshot{'s' * (count > 1)} in the steps ahead")
    return conditions


def find_reason(message: str) -> str:
    """The reason of a refusal, in the words of a table."""
    if "the Gaussian that" in message:
        return "the perturbation needs a Gaussian of the weights during training"
    if "second gradient" in message:
        return "the posterior takes its second gradient at perturbed weights itself"
    if "density" in message:
        return "a sampler needs gradients of one fixed loss while it collects"
    return "a variational objective needs gradients of one fixed loss"


def summarize(kind: type) -> str:
    """First sentence of the docstring of a class, without its full stop."""
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].removesuffix(".")


def render_axes() -> str:
    """Tables of both axes."""
    return f"{render_posteriors()}\n\n{render_flatness()}"


def render_names() -> str:
    """The names of all methods, for README.md."""
    axes = (("Posteriors", flatbayes.posteriors, Posterior), ("Flatness", flatbayes.flatness, Flatness))
    lines = []
    for title, package, base in axes:
        names = [f"`{kind.__name__}`" for kind in list_methods(package, base)]
        lines.append(textwrap.fill(f"* {title} ({len(names)}): {', '.join(names)}.", 118, subsequent_indent="  "))
    return "\n".join(lines)


def update_readme() -> None:
    """Write the names into README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    README.write_text(f"{before}{START}\n\n{render_names()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update_readme()
