"""Rewrites command lines as people type them: bare option names, lists without brackets, `--help SWAG`.

What cannot be understood is refused here, in one or two lines that say what to write instead; the parser's own
messages are written for those who know its types.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names, resolve_value
from flatbayes.cli.class_signatures import (
    LIST_OPTION,
    OPTIMIZER_OPTION,
    resolve_default_optimizer,
    shorten_class_path,
)
from flatbayes.cli.config_files import read_config_file
from flatbayes.cli.models import check_model_path
from flatbayes.cli.option_table import OptionTable
from flatbayes.cli.parsing import to_plain_spec
from flatbayes.cli.tokens import Token, list_columns, read_class_text, read_scalar, sort_tokens, split_tokens
from flatbayes.cli.value_types import (
    FALSE_WORDS,
    TRUE_WORDS,
    accepts,
    describe_type,
    is_checkable,
    is_sequence,
    join_values,
    read_text,
    split_list,
    suggest_choice,
)
from flatbayes.core.names import format_suggestion, match_name

HELP_AXES = ("posterior", "flatness", "model", "data", "schedule", OPTIMIZER_OPTION)
"""Options whose classes `--help NAME` describes, in the order in which a name is looked up."""


class NormalizedArguments(NamedTuple):
    """Command-line arguments of a verb that the parser reads.

    Attributes:
        arguments: Arguments after the verb, with full option names.
        optimizer_options: Options of the default optimizer that are given, where no optimizer is named.
    """

    arguments: list[str]
    optimizer_options: tuple[str, ...] = ()


def normalize_arguments(verb: str, parser: ArgumentParser, arguments: Sequence[str]) -> NormalizedArguments:
    """Command-line arguments of a verb with full option names and values that the parser reads.

    Raises:
        ValueError: An option is unknown, ambiguous, or without a value, or has a value of the wrong type.
    """
    table = OptionTable.create(verb, parser)
    tokens = list(split_tokens(arguments))
    for token in tokens:
        if token.flag in ("-h", "--help"):
            return NormalizedArguments(_normalize_help(table, token))
    line = _CommandLine(table, [action for action in parser._actions if not action.option_strings])
    for token in sort_tokens(tokens, [*table.class_options(), LIST_OPTION]):
        line.add(token)
    line.finish()
    return NormalizedArguments([*line.positionals, *line.options], tuple(line.optimizer_options))


class _CommandLine:
    """Arguments that are rewritten one option at a time."""

    def __init__(self, table: OptionTable, positionals: list[argparse.Action]) -> None:
        self.table = table
        self.slots = positionals
        self.positionals: list[str] = []
        self.options: list[str] = []
        self.given: dict[str, Any] = {}
        self.optimizer_options: list[str] = []

    def add(self, token: Token) -> None:
        """Rewrite one option."""
        if not token.flag:
            self._add_strays(token, token.values)
            return
        if not token.flag.startswith("--"):
            name = token.flag.lstrip("-")
            suggestion = format_suggestion(name, self.table.own_options(), "--")
            raise ValueError(f"{token.flag} is not an option: options begin with two dashes. {suggestion}".rstrip())
        name = self.table.find(token.flag[2:])
        if name == "config":
            self._add_config(token)
        elif name.partition(".")[0] in self.table.groups() and "." not in name:
            self._add_group(name, token)
        elif name.endswith(".help"):
            self.options.append("=".join([f"--{name}", *token.values[:1]]))
        elif name == "print_config":
            self.options += ["=".join([f"--{name}", *token.values])]
        elif name in self.table.actions and self.table.actions[name].nargs == 0:
            self._add_switch(name, token)
        else:
            self._add_value(name, token)

    def finish(self) -> None:
        """Check what is known only with all options.

        Raises:
            ValueError: A class has a required option that is not given.
        """
        for option, path in self.table.selected.items():
            signature = self.table.signature(option)
            prefix = f"{option}."
            given = {key.removeprefix(prefix).partition(".")[0] for key in self.given if key.startswith(prefix)}
            missing = [name for name in signature.required if name not in given]
            if missing and option in self.given:
                raise ValueError(self._explain_missing(option, path, missing[0]))

    def _add_config(self, token: Token) -> None:
        if not token.values or not token.values[0]:
            raise ValueError("--config needs a YAML file, such as --config settings.yaml.")
        config = read_config_file(token.values[0], self.table)
        for name, value in config.items():
            self._remember(name, value)
        self.options.append(f"--config={json.dumps(config)}")
        self._add_strays(token, token.values[1:])

    def _add_group(self, group: str, token: Token) -> None:
        options = [name for name in self.table.own_options() if name.startswith(f"{group}.")]
        fitting = [
            name
            for name in options
            if "Literal" in str(self.table.hint(name)) and accepts(self.table.hint(name), "".join(token.values))
        ]
        if len(fitting) == 1:  # `--precision bf16-mixed`
            self._add_value(fitting[0], token)
            return
        if len(token.values) == 1 and token.values[0].endswith((".yaml", ".yml", ".json", "}")):
            self.options.append(f"--{group}={token.values[0]}")
            return
        raise ValueError(f"--{group} is a group of options: {', '.join(f'--{name}' for name in options)}.")

    def _add_switch(self, name: str, token: Token) -> None:
        word = token.values[0].lower() if token.values else "true"
        if word not in (*TRUE_WORDS, *FALSE_WORDS):
            if len(self.slots) and not self.positionals:
                self._add_strays(token, token.values)
            else:
                raise ValueError(f"--{name} is on or off and takes no value: leave {token.values[0]!r} out.")
        if word not in FALSE_WORDS:
            self.options.append(f"--{name}")
        self._add_strays(token, token.values[1:] if word in (*TRUE_WORDS, *FALSE_WORDS) else [])

    def _add_value(self, name: str, token: Token) -> None:
        self._select_optimizer(name)
        hint = self.table.hint(name)
        action = self.table.actions.get(name.removesuffix("+"))
        if action is not None and action.nargs == "*":
            if not all(value.strip() for value in token.values):
                raise ValueError(f"--{name} has an empty value: leave it out.")
            values = split_list(token.values)
            self._check_choices(name, action, values)
            self.options += [f"--{name}", *values]
            return
        root = name.removesuffix("+").rpartition(".")[2]
        is_class = root in CLASS_OPTIONS and not is_checkable(hint)
        values = [*token.values]
        if hint is bool and not values:
            values = ["true"]  # an option that is named is switched on
        if not values:
            default = None if is_class or action is None else action.default
            example = f", such as --{name} {default}" if isinstance(default, int | float | str) else ""
            raise ValueError(f"--{name} needs a value after it: {self._describe(name, hint, is_class)}{example}.")
        if not values[0].strip():
            raise ValueError(f"--{name} is empty: it needs {self._describe(name, hint, is_class)}.")
        if is_sequence(hint) or hint is bool:
            values = join_values(hint, values)
        elif is_class and len(values) > 1 and values[0].lstrip()[:1] in ("[", "{"):
            values = [" ".join(values)]
        text, strays = values[0], values[1:]
        if is_class:
            text = self._resolve_class(name, text)
        elif is_checkable(hint):
            value = read_text(hint, text)
            if not accepts(hint, value):
                description = self._describe(name, hint, is_class)
                raise ValueError(f"--{name} must be {description}, got {text!r}.{suggest_choice(hint, text)}")
            text = json.dumps(value) if isinstance(value, dict) else text
        self._remember(name, text)
        self.options.append(f"--{name}={text}")
        self._add_strays(token, strays)

    def _resolve_class(self, name: str, text: str) -> str:
        if text.lower() in ("null", "none") and name in ("model", OPTIMIZER_OPTION, "ood"):
            return "null"
        if name == "model" and not text.startswith("{"):
            text = check_model_path(text)
        option = name.removesuffix("+").rpartition(".")[2]
        value: Any = read_class_text(text, name)
        resolved = resolve_value(value, option)
        self.table.check_spec(name.removesuffix("+"), resolved)
        if option != LIST_OPTION:
            self.table.select(name, resolved)
        return resolved if isinstance(resolved, str) else json.dumps(resolved)

    def _select_optimizer(self, name: str) -> None:
        """Name the default optimizer of the posterior before an option of it."""
        if not name.startswith(f"{OPTIMIZER_OPTION}."):
            return
        if OPTIMIZER_OPTION in self.table.selected and not self.optimizer_options:
            return
        self.optimizer_options.append(name.partition(".")[2])
        if OPTIMIZER_OPTION in self.table.selected:
            return
        optimizer = default_optimizer(self.table, self.given)
        if optimizer is None:
            raise ValueError(
                f"--{name} is an option of an optimizer, and the posteriors have different ones by default: name it, "
                f"such as --optimizer SGD --{name} 0.1."
            )
        self.options.append(f"--{OPTIMIZER_OPTION}={json.dumps(optimizer)}")
        self._remember(OPTIMIZER_OPTION, optimizer)
        self.table.select(OPTIMIZER_OPTION, optimizer)

    def _remember(self, name: str, value: Any) -> None:
        name = name.removesuffix("+")
        if isinstance(value, str) and value[:1] in ("{", "["):
            with suppress(yaml.YAMLError):  # a text that begins with a bracket
                value = yaml.safe_load(value)
        self.given[name] = value
        arguments = value.get("init_args", {}) if isinstance(value, dict) and "class_path" in value else value
        if isinstance(arguments, dict):
            for key, item in arguments.items():
                self._remember(f"{name}.{key}", item)

    def _add_strays(self, token: Token, values: Sequence[str]) -> None:
        """Take values that no option takes as positional arguments, or refuse them."""
        for index, value in enumerate(values):
            takes_more = self.slots and (len(self.positionals) < len(self.slots) or self.slots[-1].nargs == "+")
            if not takes_more:
                raise ValueError(self._explain_stray(token, value, index))
            if not value.strip():
                raise ValueError(f"The {self.slots[0].dest} is empty: give the path of a folder.")
            self.positionals.append(value)

    def _explain_stray(self, token: Token, value: str, index: int) -> str:
        verb = self.table.verb
        if token.flag and len(token.values) > 1:
            return (
                f"{token.flag} takes one value, got {len(token.values)}: {' '.join(token.values)}. Keep one of them."
            )
        if self.slots:
            return f"flatbayes {verb} takes one {self.slots[0].dest}, got {self.positionals[0]} and {value}."
        example = f"--data {value}" if "data" in self.table.actions else "--help"
        return (
            f"flatbayes {verb} takes options only, got {value!r}. Write the name of its option before it: {example}?"
        )

    def _explain_missing(self, option: str, path: str, name: str) -> str:
        if path.endswith(".Table") and name == "target":
            file = self.given.get(f"{option}.path", "the file")
            return (
                f"--{option}.target is missing: which column of {file} is to be predicted? {list_columns(str(file))}"
            )
        return (
            f"{path.rpartition('.')[2]} needs --{option}.{name}. Its options: flatbayes {self.table.verb} "
            f"--{option}.help {shorten_class_path(path)}."
        )

    def _describe(self, name: str, hint: Any, is_class: bool) -> str:
        option = name.rpartition(".")[2]
        if name == LIST_OPTION:
            return "a list of posteriors, such as [MCDropout, SWAG]"
        if is_class:
            path = ", or a path" if option in ("data", "ood") else ""
            return f"a name, such as {list_names(option)[-1] if option != 'data' else 'digits'}{path}"
        default = getattr(self.table.actions.get(name.removesuffix("+")), "default", None)
        if isinstance(default, list) and default:
            return f"a list such as {json.dumps(default)}"
        return describe_type(hint) if is_checkable(hint) else "a value"

    def _check_choices(self, name: str, action: argparse.Action, values: Sequence[str]) -> None:
        choices = list(map(str, action.choices or ()))
        for value in values:
            if choices and value not in choices:
                raise ValueError(
                    f"--{name} must be some of {', '.join(choices)}, got {value!r}. "
                    f"{format_suggestion(value, choices)}".rstrip()
                )


def default_optimizer(table: OptionTable, given: dict[str, Any]) -> dict[str, Any] | None:
    """Spec of the optimizer that the selected posterior, or all of a list of posteriors, use by default."""
    if LIST_OPTION in table.actions:
        specs = given.get(LIST_OPTION, table.actions[LIST_OPTION].default)
        return resolve_default_optimizer([to_plain_spec(spec) for spec in specs])
    options = {
        key.removeprefix("posterior."): read_scalar(value)
        for key, value in given.items()
        if key.startswith("posterior.") and key.count(".") == 1
    }
    return resolve_default_optimizer([{"class_path": table.selected["posterior"], "init_args": options}])


def _normalize_help(table: OptionTable, token: Token) -> list[str]:
    if not token.values:
        return ["--help"]
    name = token.values[0]
    axes = [axis for axis in HELP_AXES if f"{axis}.help" in table.actions or axis == "posterior"]
    for axis in axes:
        class_name = match_name(name, list_names(axis))
        option = axis if f"{axis}.help" in table.actions else LIST_OPTION
        if class_name is not None and f"{option}.help" in table.actions:
            return [f"--{option}.help={class_name}"]
    suggestion = format_suggestion(name, [choice for axis in axes for choice in list_names(axis)])
    raise ValueError(f"There is no help on {name!r}. {suggestion}flatbayes {table.verb} --help lists all names.")
