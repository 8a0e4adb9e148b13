"""Options of classes: their signatures, and answers to wrong names and classes."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names, resolve_value
from flatbayes.cli.value_types import reduce_hint
from flatbayes.core.names import format_suggestion
from flatbayes.core.renames import explain_option
from flatbayes.core.signatures import read_signature, write_annotations_as_text
from flatbayes.core.spec import import_object, instantiate, to_spec

DATA_ARGUMENTS = {"input_shape", "num_classes", "num_outputs"}
"""Arguments of models that are set from the data."""

OPTIMIZER_OPTION = "optimizer"
LIST_OPTION = "posteriors"
EXAMPLE_CLASSES = ("SWAG", "Laplace", "SAM", "MLP")
"""Classes that messages name as an example, if there is a choice."""
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

        `skip` has arguments that are no options.
        """
        try:
            target = import_object(path)
            write_annotations_as_text(target)
            parameters = list(read_signature(target).parameters.values())
        except (ValueError, TypeError):
            return cls()
        try:
            is_plain = is_dataclass(target) or inspect.isfunction(target)
            hints = get_type_hints(target if is_plain else target.__init__)
        except (NameError, TypeError, AttributeError, SyntaxError):
            hints = {}
        is_open = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in skip]
        required = tuple(p.name for p in named if p.default is p.empty)
        return cls({p.name: reduce_hint(hints.get(p.name)) for p in named}, required, is_open)


def shorten_class_path(path: str) -> str:
    """The name of a class of flatbayes or torch, which the command line takes; the dotted path of any other."""
    return path.rpartition(".")[2] if path.partition(".")[0] in ("flatbayes", "torch") else path


def explain_unknown_argument(path: str, signature: ClassSignature, name: str, written: str) -> str:
    """What is wrong with the name of an argument of a class, and which arguments it has."""
    class_name, renamed = path.rpartition(".")[2], explain_option(name, path=path)
    if renamed is not None:
        return f"{class_name} has no option {written}. {renamed}"
    options = f"Its options: {', '.join(signature.hints)}." if signature.hints else "It has no options."
    suggestion = format_suggestion(name, signature.hints, written.removesuffix(name))
    return f"{class_name} has no option {written}. {suggestion}{options}"


def check_class(option: str, path: str) -> None:
    """Refuse a dotted path that does not lead to a class of an option."""
    if option not in CLASS_OPTIONS or option == "model":
        return
    module, base = CLASS_OPTIONS[option]
    name = path.rpartition(".")[2]
    try:
        target = import_object(path)
    except ValueError as error:
        suggestion = format_suggestion(name, list_names(option)) if path.startswith(module.__name__) else ""
        raise ValueError(f"--{option}: {error} {suggestion}".rstrip()) from error
    if isinstance(target, type) and base is not None and not issubclass(target, base) and name != "Method":
        choices = f"Known: {', '.join(list_names(option))}"
        raise ValueError(f"--{option}: {path} is not a subclass of {base.__name__}. {choices}; or one of your own.")


@cache
def default_optimizer_options() -> frozenset[str]:
    """Options of the optimizers that posteriors have by default."""
    return frozenset(
        name for path in DEFAULT_OPTIMIZERS for name in ClassSignature.of(path, frozenset({"params"})).hints
    )


def resolve_default_optimizer(posterior_specs: list[Any]) -> dict[str, Any] | None:
    """Spec of the default optimizer of posteriors; None if they differ, or a posterior is not of flatbayes."""
    optimizers = []
    for spec in posterior_specs:
        resolved = resolve_value(spec, "posterior")
        plain = {"class_path": resolved} if isinstance(resolved, str) else resolved
        if not isinstance(plain, dict) or not str(plain.get("class_path")).startswith("flatbayes."):
            return None
        try:
            posterior = instantiate(plain)
        except (ValueError, TypeError):
            return None  # reported when the options are parsed
        optimizers.append(to_spec(posterior.default_optimizer))
    return optimizers[0] if optimizers and all(optimizer == optimizers[0] for optimizer in optimizers) else None
