"""Options of a verb: its own ones, and those of the classes that are selected for data, model, posterior and others.

`--flatness.rho` is an option of the class that `--flatness` names. `OptionTable` knows these options and their types, so
that a wrong name or value gets an answer in the words of the command, and a bare name such as `--rho` is completed.
"""

import inspect
from argparse import Action
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names, resolve_value
from flatbayes.core.names import format_suggestion
from flatbayes.core.renames import explain_option
from flatbayes.core.spec import import_object, to_spec

DATA_ARGUMENTS = {"input_shape", "num_classes", "num_outputs"}
"""Arguments of models that are set from the data."""

SYNONYMS = {"learning_rate": "lr", "weight_prior": "prior_precision", "device": "accelerator", "output": "out",
            "output_dir": "out", "dataset": "data", "train_data": "data", "num_epochs": "epochs", "optimiser": "optimizer",
            "batchsize": "batch_size", "samples": "num_draws", "num_samples": "num_draws", "gpus": "devices",
            "network": "model", "arch": "model", "method": "posterior", "workers": "num_jobs", "force": "overwrite"}  # fmt: skip
"""What other programs call an option -> its name here."""

OPTIMIZER_OPTION = "optimizer"
LIST_OPTION = "posteriors"
DEFAULT_OPTIMIZERS = ("torch.optim.SGD", "torch.optim.Adam")
"""Optimizers that posteriors have by default."""


@dataclass(frozen=True)
class ClassSignature:
    """Arguments of a class or function that are options.

    Attributes:
        hints: Type of each argument.
        required: Names of the arguments without a default.
        is_open: Whether it takes other arguments too.
    """

    hints: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    is_open: bool = True

    @classmethod
    def of(cls, path: str, skip: frozenset[str] = frozenset()) -> "ClassSignature":
        """The signature of what a dotted path leads to; an open one if that cannot be imported.

        Args:
            path: Dotted path.
            skip: Arguments that are no options.
        """
        try:
            target = import_object(path)
            parameters = list(inspect.signature(target).parameters.values())
        except (ValueError, TypeError):
            return cls()
        try:
            hints = get_type_hints(target if is_dataclass(target) or inspect.isfunction(target) else target.__init__)  # type: ignore[misc]
        except (NameError, TypeError, AttributeError):
            hints = {}
        is_open = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in skip]
        required = tuple(p.name for p in named if p.default is p.empty)
        return cls({p.name: hints.get(p.name) for p in named}, required, is_open)


@dataclass
class OptionTable:
    """Options of a verb, given the classes that are selected so far.

    Attributes:
        verb: Name of the verb.
        actions: Action of the parser by the name of the option, without dashes.
        selected: Dotted path of the class by option, `flatness` or `posterior.member`.
    """

    verb: str
    actions: Mapping[str, Action]
    selected: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(cls, verb: str, parser: ArgumentParser) -> "OptionTable":
        """The table of a verb with the default classes."""
        actions = {
            text[2:]: action
            for action in parser._actions
            for text in action.option_strings
            if text.startswith("--") and not text.endswith("+")
        }
        table = cls(verb, actions)
        for name in table.class_options():
            default = parser.get_default(name)
            table.select(name, default.as_dict() if isinstance(default, Namespace) else default)
        return table

    def class_options(self) -> list[str]:
        """Options of the verb that take one class."""
        return [
            name
            for name in self.actions
            if f"{name}.help" in self.actions and name != LIST_OPTION and name in {*CLASS_OPTIONS, OPTIMIZER_OPTION}
        ]

    def groups(self) -> list[str]:
        """Groups of options, such as `optimization`."""
        return sorted({name.partition(".")[0] for name in self.own_options() if "." in name})

    def own_options(self) -> list[str]:
        """Options of the verb itself, those of groups with their dotted names."""
        groups = {name.partition(".")[0] for name in self.actions if "." in name and not name.endswith(".help")}
        return [name for name in self.actions if not name.endswith(".help") and name not in groups]

    def select(self, option: str, spec: Any) -> None:
        """Remember the class of an option and those of its arguments.

        Args:
            option: Name of the option, `flatness` or `posterior.member`.
            spec: A dotted path, or a mapping with `class_path` and `init_args`.
        """
        if isinstance(spec, str):
            spec = {"class_path": spec}
        if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
            return
        for nested in [name for name in self.selected if name.startswith(f"{option}.")]:
            del self.selected[nested]
        self.selected[option] = spec["class_path"]
        for name, value in (spec.get("init_args") or {}).items():
            self.select(f"{option}.{name}", value if isinstance(value, dict) else None)

    def signature(self, option: str) -> ClassSignature:
        """Arguments of the class that is selected for an option; an open signature if none is."""
        path = self.selected.get(option)
        if path is None or path.endswith(".TorchDataset"):
            return ClassSignature()
        skip = DATA_ARGUMENTS if option == "model" else {"params"} if option == OPTIMIZER_OPTION else set()
        return ClassSignature.of(path, frozenset(skip))

    def find(self, written: str) -> str:
        """The full name of an option.

        Args:
            written: What the user wrote, without dashes in front.

        Raises:
            ValueError: There is no such option, or there are several; the message names them.
        """
        name = written.removesuffix("+")
        for candidate in (name, name.replace("-", "_")):
            if candidate in self.actions:
                return written.replace(name, candidate)
        name = name.replace("-", "_").replace(".init_args.", ".")
        group, dot, _ = name.rpartition(".")
        if dot and self._is_class_option(group.removesuffix(".help")):
            return self._check_class_option(name)
        abbreviated = [option for option in self.own_options() if option.startswith(name)] if not dot else []
        if len(abbreviated) == 1:
            return abbreviated[0]
        full_names = self.complete(name) or self.complete(SYNONYMS.get(name, name))
        if len(full_names) == 1:
            return full_names[0]
        if len(full_names) > 1:
            raise ValueError(
                f"--{written} is an option of several parts: write {' or '.join(f'--{full}' for full in full_names)}."
            )
        raise ValueError(self.explain_unknown(written, name, abbreviated))

    def complete(self, bare_name: str) -> list[str]:
        """Full names of the options of groups and of selected classes that have a bare name."""
        if "." in bare_name:
            return []
        full_names = [name for name in self.own_options() if name.rpartition(".")[2] == bare_name]
        full_names += [
            f"{option}.{bare_name}" for option in self.selected if bare_name in self.signature(option).hints
        ]
        if not full_names and OPTIMIZER_OPTION in self.actions and bare_name in _default_optimizer_options():
            return [f"{OPTIMIZER_OPTION}.{bare_name}"]
        if not full_names:
            return []
        shallow = [name for name in full_names if name.count(".") == min(n.count(".") for n in full_names)]
        return shallow if len(shallow) == 1 else full_names

    def hint(self, name: str) -> Any:
        """Type of an option, or None if it is not known."""
        name = name.removesuffix("+")
        if name in self.actions:
            action = self.actions[name]
            return getattr(action, "_typehint", None) or action.type
        group, _, option = name.rpartition(".")
        return self.signature(group).hints.get(option)

    def explain_unknown(self, written: str, name: str, abbreviated: list[str]) -> str:
        """What is wrong with the name of an option, and what to write instead."""
        renamed = explain_option(name, self.verb)
        message = f"flatbayes {self.verb} has no option --{written}."
        if name not in self.own_options() and renamed is not None:
            return f"{message} {renamed}"
        if abbreviated:
            return f"{message} It may stand for {', '.join(f'--{option}' for option in abbreviated)}: write one of them."
        owners = self._find_owners(SYNONYMS.get(name, name))
        if owners:
            return f"{message} {owners}"
        synonym = SYNONYMS.get(name)
        if synonym in self.own_options():
            return f"{message} Did you mean --{synonym}? All options: flatbayes {self.verb} --help."
        candidates = [*self.own_options(), *self._class_option_names()]
        bare = {candidate.rpartition(".")[2]: candidate for candidate in reversed(candidates)}
        suggestion = format_suggestion(name, candidates, "--")
        if not suggestion:
            suggestion = format_suggestion(name, bare, "--")
        return f"{message} {suggestion}All options: flatbayes {self.verb} --help."

    def explain_unknown_argument(self, option: str, name: str, written: str) -> str:
        """What is wrong with the name of an argument of the class that is selected for an option."""
        path, hints = self.selected[option], self.signature(option).hints
        class_name = path.rpartition(".")[2]
        renamed = explain_option(name, path=path)
        if renamed is not None:
            return f"{class_name} has no option {written}. {renamed}"
        options = f"Its options: {', '.join(hints)}." if hints else "It has no options."
        prefix = written.removesuffix(name)
        return f"{class_name} has no option {written}. {format_suggestion(name, hints, prefix)}{options}"

    def _is_class_option(self, option: str) -> bool:
        root = option.partition(".")[0]
        return root in self.class_options()

    def _check_class_option(self, name: str) -> str:
        if name.endswith(".help"):
            return name
        option, _, argument = name.rpartition(".")
        for prefix in (option, *(option.rsplit(".", depth)[0] for depth in range(1, option.count(".") + 1))):
            if prefix in self.selected:
                argument = name.removeprefix(f"{prefix}.")
                signature = self.signature(prefix)
                first = argument.partition(".")[0]
                if not signature.is_open and first not in signature.hints:
                    raise ValueError(self.explain_unknown_argument(prefix, first, f"--{name}"))
                return name
        if option == OPTIMIZER_OPTION and argument in _default_optimizer_options():
            return name  # the caller selects the default optimizer
        raise ValueError(f"--{name} is an option of what --{option} names: give --{option} NAME before it.")

    def _class_option_names(self) -> list[str]:
        return [f"{option}.{name}" for option in self.selected for name in self.signature(option).hints]

    def _find_owners(self, name: str) -> str:
        for option in self.class_options():
            if option not in CLASS_OPTIONS or option in ("data", "ood", OPTIMIZER_OPTION):
                continue
            module = CLASS_OPTIONS[option][0]
            owners = [
                owner
                for owner in list_names(option)
                if name in ClassSignature.of(f"{module.__name__}.{owner}").hints
            ]
            if owners:
                selected = self.selected.get(option, "not given").rpartition(".")[2]
                return (
                    f"{name} is an option of {', '.join(owners)}, and --{option} is {selected}: "
                    f"write --{option} {owners[0]} --{option}.{name} VALUE."
                )
        return ""


@cache
def _default_optimizer_options() -> frozenset[str]:
    return frozenset(
        name for path in DEFAULT_OPTIMIZERS for name in ClassSignature.of(path, frozenset({"params"})).hints
    )


def resolve_default_optimizer(posterior_specs: list[Any]) -> dict[str, Any] | None:
    """Spec of the optimizer that posteriors use by default; None if they differ, or a posterior is not of flatbayes.

    Args:
        posterior_specs: Class paths or specs of the posteriors.
    """
    optimizers = []
    for spec in posterior_specs:
        resolved = resolve_value(spec, "posterior")
        plain = {"class_path": resolved} if isinstance(resolved, str) else resolved
        if not isinstance(plain, dict) or not str(plain.get("class_path")).startswith("flatbayes."):
            return None
        try:
            posterior = _build(plain)
        except (ValueError, TypeError):
            return None  # reported when the options are parsed
        optimizers.append(to_spec(posterior.default_optimizer))
    return optimizers[0] if optimizers and all(optimizer == optimizers[0] for optimizer in optimizers) else None


def _build(spec: Any) -> Any:
    if isinstance(spec, dict) and "class_path" in spec:
        arguments = {name: _build(value) for name, value in (spec.get("init_args") or {}).items()}
        return import_object(spec["class_path"])(**arguments)
    return spec
