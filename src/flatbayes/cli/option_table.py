"""Options of a verb: its own ones, and those of the classes that are selected for data, model, posterior and others.

`--flatness.rho` is an option of the class that `--flatness` names. `OptionTable` knows these options and their types,
so that a wrong name or value gets an answer in the words of the command, and a bare name such as `--rho` is
completed.
"""

from argparse import Action
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentParser

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names
from flatbayes.cli.class_signatures import (
    DATA_ARGUMENTS,
    EXAMPLE_CLASSES,
    LIST_OPTION,
    OPTIMIZER_OPTION,
    ClassSignature,
    check_class,
    default_optimizer_options,
    explain_unknown_argument,
)
from flatbayes.cli.parsing import to_plain_spec
from flatbayes.cli.value_types import accepts, describe_type, is_checkable
from flatbayes.core.names import format_suggestion
from flatbayes.core.renames import explain_option

SYNONYMS = {
    "arch": "model",
    "batchsize": "batch_size",
    "dataset": "data",
    "device": "accelerator",
    "force": "overwrite",
    "gpus": "devices",
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "max_steps": "min_steps",
    "method": "posterior",
    "network": "model",
    "num_epochs": "epochs",
    "num_samples": "num_draws",
    "num_steps": "min_steps",
    "optimiser": "optimizer",
    "output": "out",
    "output_dir": "out",
    "steps": "min_steps",
    "workers": "num_jobs",
}
"""What other programs call an option -> its name here."""


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
            table.select(name, to_plain_spec(parser.get_default(name)))
        return table

    def class_options(self) -> list[str]:
        """Options of the verb that take one class."""
        return [
            name
            for name in self.actions
            if f"{name}.help" in self.actions and name != LIST_OPTION and name in CLASS_OPTIONS
        ]

    def groups(self) -> list[str]:
        """Groups of options, such as `optimization`."""
        return sorted({name.partition(".")[0] for name in self.own_options() if "." in name})

    def own_options(self) -> list[str]:
        """Options of the verb itself, those of groups with their dotted names."""
        groups = {name.partition(".")[0] for name in self.actions if "." in name and not name.endswith(".help")}
        return [name for name in self.actions if not name.endswith(".help") and name not in groups]

    def select(self, option: str, spec: Any) -> None:
        """Remember the class of an option, `flatness` or `posterior.member`, and those of its arguments."""
        if isinstance(spec, str):
            spec = {"class_path": spec}
        if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
            return
        for nested in [name for name in self.selected if name.startswith(f"{option}.")]:
            del self.selected[nested]
        self.selected[option] = spec["class_path"]
        arguments = spec.get("init_args")
        for name, value in (arguments if isinstance(arguments, dict) else {}).items():
            self.select(f"{option}.{name}", value if isinstance(value, dict) else None)

    def signature(self, option: str, path: str | None = None) -> ClassSignature:
        """Arguments of a class, by default the selected one; an open signature if there is none."""
        path = path or self.selected.get(option)
        if path is None or path.endswith(".TorchDataset"):
            return ClassSignature()
        skip = DATA_ARGUMENTS if option == "model" else {"params"} if option == OPTIMIZER_OPTION else set()
        return ClassSignature.of(path, frozenset(skip))

    def find(self, written: str, *, abbreviated: bool = True) -> str:
        """The full name of an option.

        What is `written` has no dashes in front; with `abbreviated` the beginning of a name stands for it.

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
        continued = [option for option in self.own_options() if option.startswith(name)] if not dot else []
        if abbreviated and len(continued) == 1:
            return continued[0]
        full_names = self.complete(name) or self.complete(SYNONYMS.get(name, name))
        if len(full_names) == 1:
            return full_names[0]
        if len(full_names) > 1:
            raise ValueError(
                f"--{written} could be {' or '.join(f'--{full}' for full in full_names)}: write one of them."
            )
        raise ValueError(self.explain_unknown(written, name, continued if abbreviated else []))

    def complete(self, bare_name: str) -> list[str]:
        """Full names of the options of groups and of selected classes that have a bare name."""
        if "." in bare_name:
            return []
        full_names = [name for name in self.own_options() if name.rpartition(".")[2] == bare_name]
        full_names += [
            f"{option}.{bare_name}" for option in self.selected if bare_name in self.signature(option).hints
        ]
        if not full_names and OPTIMIZER_OPTION in self.actions and bare_name in default_optimizer_options():
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

    def check_spec(self, option: str, spec: Any, place: str = "") -> None:
        """Refuse a class that is no class of an option, and unknown or mistyped arguments of it.

        `spec` is a dotted path, the spec of a class, or a list of these; `place` is the beginning of messages.
        """
        if isinstance(spec, list):
            for item in spec:
                self.check_spec(option, item, place)
        if isinstance(spec, str):
            spec = {"class_path": spec}
        if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
            return
        path = spec["class_path"]
        check_class(option.rpartition(".")[2], path)
        signature = self.signature(option, path)
        for name, value in (spec.get("init_args") or {}).items():
            if not signature.is_open and name not in signature.hints:
                raise ValueError(place + explain_unknown_argument(path, signature, str(name), str(name)))
            hint = signature.hints.get(name)
            if is_checkable(hint) and not accepts(hint, value):
                raise ValueError(
                    f"{place}{name} of {path.rpartition('.')[2]} must be {describe_type(hint)}, got {value!r}."
                )
            if isinstance(value, dict) and name in CLASS_OPTIONS:
                self.check_spec(f"{option}.{name}", value, place)

    def explain_unknown(self, written: str, name: str, abbreviated: list[str]) -> str:
        """What is wrong with the name of an option, and what to write instead."""
        renamed = explain_option(name, self.verb)
        message = f"flatbayes {self.verb} has no option --{written}."
        if name not in self.own_options() and renamed is not None:
            return f"{message} {renamed}"
        if abbreviated:
            return (
                f"{message} It may stand for {', '.join(f'--{option}' for option in abbreviated)}: write one of them."
            )
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
                    raise ValueError(
                        explain_unknown_argument(self.selected[prefix], signature, first, f"--{prefix}.{first}")
                    )
                return name
        if option == OPTIMIZER_OPTION and argument in default_optimizer_options():
            return name  # the caller selects the default optimizer
        if option == OPTIMIZER_OPTION:
            suggestion = format_suggestion(argument, sorted(default_optimizer_options()), "--optimizer.")
            raise ValueError(f"The optimizer has no option --{name}. {suggestion}Name it first: --optimizer SGD.")
        raise ValueError(f"--{name} is an option of what --{option} names: give --{option} NAME before it.")

    def _class_option_names(self) -> list[str]:
        return [f"{option}.{name}" for option in self.selected for name in self.signature(option).hints]

    def _find_owners(self, name: str) -> str:
        for option in self.class_options():
            if option in ("data", "ood", OPTIMIZER_OPTION):
                continue
            module = CLASS_OPTIONS[option][0]
            owners = [
                owner for owner in list_names(option) if name in ClassSignature.of(f"{module.__name__}.{owner}").hints
            ]
            if owners:
                selected = self.selected.get(option, "not given").rpartition(".")[2]
                example = next((owner for owner in EXAMPLE_CLASSES if owner in owners), owners[0])
                return (
                    f"{name} is an option of {', '.join(owners)}, and --{option} is {selected}: "
                    f"write for example --{option} {example} --{option}.{name} VALUE."
                )
        return ""
