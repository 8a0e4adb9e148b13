"""Short description of a fitted posterior: method, network, data, training and cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from flatbayes.calibration import CalibrationMap
from flatbayes.core import State
from flatbayes.core.display import format_number
from flatbayes.core.names import format_count
from flatbayes.core.spec import short_name
from flatbayes.likelihoods import Bernoulli, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.posteriors import Posterior

UNKNOWN = "unknown"


def describe_fitted(
    posterior: Posterior, states: Sequence[State], info: Mapping[str, Any], likelihood: Likelihood
) -> dict[str, str]:
    """Texts by the name of what they describe; entries that the artefact does not have are left out.

    Entries of `info` of another type than expected are ignored.
    """
    training, cost = _get_mapping(info, "training"), _get_mapping(info, "cost")
    entries = {
        "posterior": short_name(posterior),
        "flatness": name_flatness(str(training.get("flatness", UNKNOWN)), info),
        "radius": str(_get_mapping(info, "radius").get("reason", "")),
        "prior": str(_get_mapping(info, "prior").get("reason", "")),
        "model": describe_network(states, info.get("model")),
        "data": describe_data(states, info, likelihood),
        "training": _join(
            _count_entry(training, "epochs", "epoch"),
            _describe_stop(training),
            _count_entry(training, "steps", "step"),
            f"seed {training['seed']}" if "seed" in training else "",
            f"{format_number(cost['train_seconds'])} s" if _is_number(cost.get("train_seconds")) else "",
            _count_entry(cost, "gradients", "gradient", spec=",.0f"),
        ),
        "optimizer": _describe_optimizer(info.get("optimizer"), training.get("learning_rate_factor")),
        "last epoch": _join(
            *(f"{name} {format_number(value)}" for name, value in _get_mapping(training, "last_epoch").items())
        ),
        "chosen": _describe_choices(training.get("draw_options")),
        "diagnostics": describe_figures(posterior, states),
        "interrupted": str(info.get("interrupted", "")),
        "calibration": CalibrationMap.from_dict(info["calibration"]).describe() if "calibration" in info else "",
        "checks": _describe_checks(info.get("checks")),
        "prediction": describe_networks(posterior, states),
        "device": _describe_device(states),
    }
    return {name: text for name, text in entries.items() if text}


def name_flatness(name: str, info: Mapping[str, Any]) -> str:
    """Name of the flatness that the networks were trained with."""
    return "Plain (chosen radius 0)" if _get_mapping(info, "radius").get("value") == 0 else name


def _describe_optimizer(spec: Any, factor: Any) -> str:
    """The optimizer that the network got by default; nothing where it is that of the posterior or was given."""
    if not isinstance(spec, dict):
        return ""
    try:
        is_constant = _is_number(factor) and factor != 1
        lr = spec["init_args"]["lr"] * (factor if is_constant else 1)
        rate = "a constant learning rate" if is_constant else "a learning rate"
        return f"{spec['class_path'].rpartition('.')[2]} with {rate} of {lr:g}, the default for this network"
    except (AttributeError, KeyError, TypeError, ValueError):  # a damaged description
        return ""


def _describe_stop(training: Mapping[str, Any]) -> str:
    """Epochs at which early stopping ended the training of each member."""
    epochs = [training.get(name) for name in ("best_epochs", "last_epochs")]
    if not all(isinstance(values, list) for values in epochs):
        return ""
    best, last = (" ".join(map(str, values)) for values in epochs if isinstance(values, list))
    return f"stopped after {last}, lowest validation NLL after {best}"


def _describe_choices(choices: Any) -> str:
    """Options that were chosen on validation examples, with the NLL of the values that were compared."""
    if not isinstance(choices, dict):
        return ""
    texts = []
    for name, choice in choices.items():
        losses = choice.get("val_nll", [])
        if "changes" in choice:
            texts.append(f"{name} {_describe_tolerance(choice)}")
            continue
        compared = ", ".join(
            f"{'as trained' if value is None else format_number(value)}: "
            f"{'not finite' if loss is None else format_number(loss)}"
            for value, loss in losses
        )
        value = "as trained" if choice["value"] is None else format_number(choice["value"])
        margin = choice.get("margin")
        rule = f"the largest within {margin:g} of the lowest" if margin else "lowest"
        if "standard_errors" in choice:
            rule = "the default unless another is lower by a standard error,"
        reason = f"{rule} validation NLL of {compared}" if losses else f"the default: {choice.get('reason')}"
        texts.append(f"{name} {value} ({reason})")
    return _join(*texts)


def _describe_tolerance(choice: Mapping[str, Any]) -> str:
    """The largest value that validation examples accept, with the changes of the predictions that were compared."""
    quantities = {
        "nll": "relative increase of the validation NLL",
        "pseudo_nll": "relative change of the NLL of its own classes",
        "changed_classes": "share of changed classes",
    }
    compared = ", ".join(
        f"{format_number(value)}: {'not finite' if change is None else format_number(change)}"
        for value, change in choice["changes"]
    )
    quantity = quantities.get(choice["criterion"], choice["criterion"])
    limit = format_number(choice["max_change"])
    return f"{format_number(choice['value'])} (the largest with at most {limit} as {quantity} of {compared})"


def describe_network(states: Sequence[State], model: Any) -> str:
    """Class of the network, its number of weights, and how many are trained where some are frozen."""
    network = states[0].model
    name = type(network).__name__
    if isinstance(model, dict) and isinstance(model.get("class_path"), str):
        try:
            arguments = {k: v for k, v in model.get("init_args", {}).items() if not k.startswith(("input_", "num_"))}
            name = short_name({"class_path": model["class_path"], "init_args": arguments})
        except (AttributeError, TypeError, ValueError):  # a damaged description, or one of a class that is gone
            name = str(model["class_path"]).rpartition(".")[2]
    sizes = [(param.numel(), param.requires_grad) for param in network.parameters()]
    num_weights, num_trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    frozen = f", {num_trained:,} of them trained" if num_trained < num_weights else ""
    return f"{name} with {format_count(num_weights, 'weight', spec=',')}{frozen}"


def describe_data(states: Sequence[State], info: Mapping[str, Any], likelihood: Likelihood) -> str:
    """Number of training examples and of held-out ones, their shape, and the classes, labels or targets."""
    noun = "label" if isinstance(unwrap_custom(likelihood), Bernoulli) else "target"
    place = " at each position" if likelihood.has_positions else ""
    shape = info.get("input_shape") or info.get("example_shape")
    classes, targets = info.get("class_names"), info.get("target_names")
    return _join(
        format_count(states[0].num_data, "training example", spec=","),
        f"{info['held_out']:,} held out for validation" if _is_number(info.get("held_out")) else "",
        f"inputs of shape {tuple(shape)}" if isinstance(shape, list) else "",
        _describe_scale(info.get("scale_nlls")),
        f"{format_count(len(classes), 'class', 'classes', spec=',')}{place}"
        if isinstance(classes, list) and classes
        else "",
        format_count(len(targets), noun, spec=",") if isinstance(targets, list) and targets else "",
    )


def _describe_scale(nlls: Any) -> str:
    """Why the inputs of a trained network are not standardized; nothing where they are."""
    if not isinstance(nlls, list) or len(nlls) != 2 or not all(map(_is_number, nlls)):
        return ""
    as_given, standardized = map(format_number, nlls)
    return (
        f"used as given, since the initial network has a training NLL of {as_given} on them and of {standardized} on "
        "standardized ones"
    )


def describe_figures(posterior: Posterior, states: Sequence[State]) -> str:
    """Figures of the training that the posterior reports, as means over the training runs."""
    figures = [posterior.describe_state(state) for state in states]
    return _join(*(f"{name} {format_number(sum(f[name] for f in figures) / len(figures))}" for name in figures[0]))


def describe_networks(posterior: Posterior, states: Sequence[State]) -> str:
    """How many different networks a prediction can average."""
    num_members = len(states)
    if not posterior.stochastic:
        return format_count(num_members, "network", spec=",")
    num_snapshots = posterior.count_stored_snapshots(states[0])
    drawn = format_count(num_snapshots, "snapshot") if num_snapshots else "any number of draws"
    return drawn if num_members == 1 else f"{drawn} of each of {num_members} members"


def _describe_checks(report: Any) -> str:
    """Names of the checks that failed when the posterior was fitted; without checks, how to run them."""
    if report is None:
        return "not run: fitted.check(data.val) says whether the uncertainty can be relied on"
    findings = report.get("findings") if isinstance(report, Mapping) else None
    entries = (
        [entry for entry in findings if isinstance(entry, Mapping)] if isinstance(findings, list | tuple) else []
    )
    failed = [str(entry.get("name")) for entry in entries if entry.get("passed") is False]
    passed = f"{len(entries) - len(failed)} of {len(entries)} passed" if entries else ""
    return _join(passed, f"failed: {', '.join(failed)}" if failed else "")


def _describe_device(states: Sequence[State]) -> str:
    param = next(states[0].model.parameters(), None)
    return "" if param is None else f"{param.device}, {str(param.dtype).removeprefix('torch.')}"


def _get_mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count_entry(data: Mapping[str, Any], name: str, noun: str, spec: str = ",") -> str:
    """An entry that is a number, with its noun; nothing if it is absent or of another type."""
    return format_count(data[name], noun, spec=spec) if _is_number(data.get(name)) else ""


def _join(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
