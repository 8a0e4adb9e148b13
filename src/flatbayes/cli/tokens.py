"""Command lines as options with the values after them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flatbayes.cli.class_signatures import OPTIMIZER_OPTION
from flatbayes.cli.value_types import accepts

OPTIMIZER_NAMES = (OPTIMIZER_OPTION, "lr", "learning_rate", "momentum", "weight_decay", "betas", "nesterov")
"""Options that may be those of the posterior's default optimizer, which depends on the options before."""


@dataclass
class Token:
    """An option and the values after it.

    Attributes:
        flag: The option as it was written, empty for values before the first option.
        values: Values up to the next option.
    """

    flag: str
    values: list[str]


def split_tokens(arguments: Sequence[str]) -> Iterator[Token]:
    """Options with the values after them; the first token holds the values before any option."""
    token = Token("", [])
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and not accepts(float, argument):
            yield token
            flag, equals, value = argument.partition("=")
            token = Token(flag, [value] if equals else [])
        else:
            token.values.append(argument)
    yield token


def sort_tokens(tokens: Sequence[Token], class_options: Sequence[str]) -> list[Token]:
    """Options that name classes before the options of these classes, and those of optimizers last."""

    def order(token: Token) -> int:
        name = token.flag.lstrip("-").removesuffix("+").replace("-", "_")
        return 0 if name in class_options else 2 if name.partition(".")[0] in OPTIMIZER_NAMES else 1

    ordered: list[Token] = []
    segment: list[Token] = []
    for token in tokens:
        if token.flag == "--config":
            ordered += [*sorted(segment, key=order), token]
            segment = []
        else:
            segment.append(token)
    return [*ordered, *sorted(segment, key=order)]
