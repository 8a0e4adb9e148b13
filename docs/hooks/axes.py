"""Tables of the two axes: posteriors, flatness, and the pairs that `fit` refuses.

`python docs/hooks/axes.py` writes them into README.md, between its marks; pages of the site get them at every build.
"""

import inspect
from collections import defaultdict
from pathlib import Path

import flatbayes.flatness
import flatbayes.posteriors
from flatbayes import Flatness, Laplace, MCDropout, Posterior, TrainingConfig
from flatbayes.integrations.tracker import TrackerConfig
from flatbayes.training.compatibility import check_compatibility

README = Path(__file__).parents[2] / "README.md"
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
    if "standard deviations" in message:
        return "the perturbation needs the standard deviations of a variational posterior"
    if "density" in message:
        return "a sampler needs gradients of one fixed loss while it collects"
    return "a variational objective needs gradients of one fixed loss"


def summarize(kind: type) -> str:
    """First sentence of the docstring of a class, without its full stop."""
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].removesuffix(".")


def render_axes() -> str:
    """All three tables."""
    return "\n\n".join([render_posteriors(), render_flatness(), render_refused_pairs()])


def update_readme() -> None:
    """Write the tables into README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    README.write_text(f"{before}{START}\n\n{render_axes()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update_readme()
