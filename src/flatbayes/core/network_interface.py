"""How a network of a user is called, and which of its outputs is used: inputs and outputs that are not one tensor.

Everything else calls `network(inputs)` with the inputs of one batch and gets one tensor. `adapt_network` makes this
true for any network, by two hooks on it: no name of a parameter changes, copies keep them, and a network that takes
and returns one tensor has none.

Inputs that are a dictionary are passed by name, `network(**inputs)`, if `forward` has parameters of these names (as
models of transformers have), and otherwise as one argument. Inputs that are a tuple are one argument, as in
`network(inputs)`, unless `forward` requires several: then `network(*inputs)`; and so are graphs, of which the entries
are passed then, such as x, edge_index and batch. A direct call with several arguments is not changed.

Outputs: `output` names the entry of a tuple or list (an index), of a dictionary (a key), or an attribute; or it is a
function of the output. Without it, the choice must be clear: the logits of an output that has some, or the only
tensor. A name or index is saved with the posterior; a function must be given again when it is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode, preserve_buffers
from flatbayes.core.graph_batches import is_graph_batch, list_declared_arguments, make_graph_arguments
from flatbayes.core.input_advice import explain_inputs
from flatbayes.core.input_trees import ModelInputs, map_tensors
from flatbayes.core.names import format_count
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.core.signatures import read_signature

OutputSelector = str | int | Callable[[Any], Tensor]
"""Key, attribute or index of the output that is used, or a function that selects it."""

GRAPHS: Literal["graphs"] = "graphs"
InputStructure = tuple[str, ...] | int | Literal["graphs"] | None
"""Keys of inputs that are a dictionary, number of those that are a tuple, `GRAPHS`; None for a tensor."""

LOGITS, HIDDEN_STATE = "logits", "last_hidden_state"


@dataclass(frozen=True)
class NetworkInterface:
    """How a network is called, and which of its outputs is used.

    Attributes:
        output: Selector of the output; None if the network returns a tensor.
        inputs: Structure of the inputs in training; None for a tensor, or if it is not known.
    """

    output: OutputSelector | None = None
    inputs: InputStructure = None

    def describe(self) -> dict[str, Any]:
        """Plain data, which `parse` reads; an output that is a function is described by its name."""
        inputs = list(self.inputs) if isinstance(self.inputs, tuple) else self.inputs
        if callable(self.output):
            return {"inputs": inputs, "function": getattr(self.output, "__qualname__", type(self.output).__name__)}
        return {"inputs": inputs, "output": self.output}

    @staticmethod
    def parse(description: object, output: OutputSelector | None = None) -> "NetworkInterface":
        """The interface of a description from `describe`, for None of one tensor; `output` replaces its selector.

        Raises:
            ValueError: The output is a function and is not given, or the description is damaged.
        """
        entries = {} if description is None else description
        if not isinstance(entries, dict):
            raise ValueError("its description of inputs and outputs is damaged.")
        inputs, stored = entries.get("inputs"), entries.get("output")
        if output is None and "function" in entries:
            raise ValueError(
                f"its output is selected by the function {str(entries['function'])[:80]}, which is not saved: pass "
                "`output`, the function of the fit."
            )
        is_valid = isinstance(inputs, int | None) or inputs == GRAPHS
        is_valid |= isinstance(inputs, list) and all(isinstance(key, str) for key in inputs)
        if not is_valid or isinstance(inputs, bool) or not isinstance(stored, str | int | None):
            raise ValueError("its description of inputs and outputs is damaged.")
        structure = tuple(inputs) if isinstance(inputs, list) else inputs
        return NetworkInterface(stored if output is None else output, structure)


@dataclass(frozen=True)
class InputHook:
    """Passes a dictionary or graphs by name, or a tuple as several arguments, where `forward` takes them so.

    Attributes:
        names: Names of the parameters of `forward`.
        takes_any_name: Whether `forward` has `**kwargs`.
        required: Names of the positional arguments that `forward` requires.
    """

    names: frozenset[str]
    takes_any_name: bool
    required: tuple[str, ...]

    @staticmethod
    def of(network: nn.Module) -> "InputHook":
        """The hook for the signature of a network."""
        params = list(read_signature(network.forward).parameters.values())
        named = [p for p in params if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        positional = [p for p in params if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return InputHook(
            frozenset(p.name for p in named),
            any(p.kind is p.VAR_KEYWORD for p in params),
            tuple(p.name for p in positional if p.default is p.empty) or list_declared_arguments(network),
        )

    def __call__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments of `forward`; None leaves them unchanged."""
        if len(args) != 1 or kwargs or isinstance(args[0], Tensor):
            return None
        inputs = args[0]
        if isinstance(inputs, tuple) and len(self.required) > 1:
            return inputs, {}
        if is_graph_batch(inputs) and len(self.required) > 1:
            return (), make_graph_arguments(inputs, self.required, self.names, type(network).__name__)
        if isinstance(inputs, Mapping) and (self.takes_any_name or self.names.intersection(inputs)):
            unknown = [] if self.takes_any_name else [key for key in inputs if key not in self.names]
            if unknown:
                raise ValueError(
                    f"forward of {type(network).__name__} takes {', '.join(sorted(self.names))}, and the inputs also "
                    f"have {', '.join(map(str, unknown))}. Leave these out of the batches."
                )
            return (), dict(inputs)
        return None


@dataclass(frozen=True)
class OutputHook:
    """Replaces the output of a network by the selected tensor.

    Attributes:
        output: The selector.
    """

    output: OutputSelector

    def __call__(self, network: nn.Module, args: Any, outputs: Any) -> Tensor:
        """The selected output."""
        return select_output(outputs, self.output)


def adapt_network(
    network: nn.Module, output: OutputSelector | None = None, *, inputs: InputStructure = None
) -> nn.Module:
    """Let a network take trees of tensors as `network(inputs)`, and return one of its outputs, in place.

    `output` is the key, attribute, index or function that selects the output, None if it is a tensor. Predictions
    recognise the inputs by their keys or number in training. An earlier adaptation is replaced; the network is
    returned.
    """
    _remove_hooks(network)
    network.register_forward_pre_hook(InputHook.of(network), with_kwargs=True)
    if output is not None:
        network.register_forward_hook(OutputHook(output))
    vars(network)["flatbayes_interface"] = NetworkInterface(output, inputs)
    return network


def get_interface(network: nn.Module) -> NetworkInterface:
    """The interface of a network."""
    interface = vars(network).get("flatbayes_interface")
    return interface if isinstance(interface, NetworkInterface) else NetworkInterface()


def infer_interface(
    network: nn.Module, inputs: ModelInputs, output: OutputSelector | None = None
) -> NetworkInterface | None:
    """The interface of a network, from one call in eval mode that changes nothing; None for a tensor in and out.

    Raises:
        ValueError: The output is not one tensor, and which to use is not clear or not there; or tuples and
            dictionaries of inputs do not fit the network.
    """
    structure, previous = get_structure(inputs), get_interface(network)
    output = previous.output if output is None else output
    weight = next(network.parameters(), torch.empty(0))
    inputs = map_tensors(lambda tensor: tensor.to(weight.device), cast_inputs(network, inputs))
    with preserve_rng(None), preserve_buffers(network), eval_mode(network), torch.no_grad():
        try:
            if structure is not None or previous != NetworkInterface():
                adapt_network(network)
            outputs = network(inputs)
        except Exception as error:
            if structure is None:
                return None if output is None else NetworkInterface(output)  # training says what is wrong
            advice = explain_inputs(network, inputs)
            if isinstance(error, ValueError) and not advice:
                raise
            raise ValueError(
                f"{type(network).__name__} cannot be called with inputs that are {_format_structure(structure)}: "
                f"{str(error).rstrip('.')}{advice}"
            ) from error
        finally:
            _remove_hooks(network)
            if previous != NetworkInterface():
                adapt_network(network, previous.output, inputs=previous.inputs)
    if output is None and not isinstance(outputs, Tensor):
        output = choose_output(outputs, type(network).__name__)
    if output is not None:
        select_output(outputs, output)
    return None if output is None and structure is None else NetworkInterface(output, structure)


def get_structure(inputs: ModelInputs) -> InputStructure:
    """Keys or number of the inputs, or that they are graphs; None for a tensor."""
    if isinstance(inputs, Tensor):
        return None
    if isinstance(inputs, dict):
        return tuple(inputs)
    return len(inputs) if isinstance(inputs, tuple) else GRAPHS


def choose_output(outputs: Any, name: str) -> str | int:
    """The output to use where that is clear: the logits, or the only tensor.

    Raises:
        ValueError: It is not clear.
    """
    entries = _list_entries(outputs)
    tensors: list[str | int] = [key for key, value in entries.items() if isinstance(value, Tensor) and value.ndim]
    if LOGITS in tensors:
        return LOGITS
    holds_more = any(isinstance(value, tuple | list | Mapping) and len(value) for value in entries.values())
    if len(tensors) == 1 and not holds_more:
        return tensors[0]
    if not tensors:
        raise ValueError(
            f"The network {name} returned a {type(outputs).__name__} without a tensor: the output must be one tensor "
            "with one row per example, or hold one. Select it by a function, output=lambda outputs: ..."
        )
    advice = (
        f"Name the output to use: output={tensors[0]!r} (on the command line, give a network, or a function that "
        "builds one, which returns this tensor alone)."
    )
    if HIDDEN_STATE in tensors:
        advice = (
            "It has no head that predicts: load one with a head, such as "
            "AutoModelForSequenceClassification.from_pretrained(name, num_labels=...)."
        )
    shown = ", ".join(f"{key!r} of shape {tuple(entries[key].shape)}" for key in tensors)
    shown += " beside nested outputs" if holds_more else ""
    raise ValueError(
        f"The network {name} returned a {type(outputs).__name__} of {format_count(len(tensors), 'tensor')}: {shown}. "
        f"{advice}"
    )


def select_output(outputs: Any, output: OutputSelector) -> Tensor:
    """The selected tensor.

    Raises:
        ValueError: There is no such output, or it is not a tensor.
    """
    if callable(output):
        selected: Any = output(outputs)
    elif isinstance(outputs, Tensor):
        raise ValueError(f"output={output!r} is given, and the network returned one tensor: leave `output` out.")
    else:
        entries = _list_entries(outputs)
        if isinstance(output, int) and output < 0:
            output += len(entries)
        if output not in entries:
            if isinstance(output, int) and isinstance(outputs, tuple) and output < len(outputs):
                selected = outputs[output]  # of a named tuple
            else:
                selected = getattr(outputs, output, None) if isinstance(output, str) else None
            if selected is None:
                names = ", ".join(map(repr, entries)) or "none"
                raise ValueError(
                    f"The network returned a {type(outputs).__name__} without the output {output!r}; its outputs: "
                    f"{names}."
                )
        else:
            selected = entries[output]
    if not isinstance(selected, Tensor):
        raise ValueError(
            f"output={output if isinstance(output, str | int) else 'function'!r} selects a "
            f"{type(selected).__name__}, and the output must be one tensor."
        )
    return selected


def _list_entries(outputs: Any) -> dict[Any, Any]:
    """The outputs by key, attribute name or index."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, tuple | list):
        return dict(zip(getattr(outputs, "_fields", range(len(outputs))), outputs, strict=True))
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return dict(getattr(outputs, "__dict__", {}))


def _format_structure(structure: InputStructure) -> str:
    if isinstance(structure, tuple):
        return f"a dictionary with the keys {', '.join(structure)}"
    return "a batch of graphs" if structure == GRAPHS else f"a tuple of {structure}"


def _remove_hooks(network: nn.Module) -> None:
    vars(network).pop("flatbayes_interface", None)
    for key, hook in list(network._forward_pre_hooks.items()):
        if isinstance(hook, InputHook):
            del network._forward_pre_hooks[key]
            network._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, hook in list(network._forward_hooks.items()):
        if isinstance(hook, OutputHook):
            del network._forward_hooks[key]
