"""A transformers model as a network that takes its main input alone: the attention mask of token ids.

A tokenizer knows which tokens are padding; token ids alone show it only where the padding token is in no text. Many
models without a padding token of their own pad with the end-of-text token, which is a token of texts too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.network_interface import LOGITS, select_output

LABEL_NAMES = frozenset({"labels", "label", "label_ids", "return_loss", "num_items_in_batch"})
"""Entries of a training batch that are no inputs."""


@dataclass(frozen=True)
class MainInput:
    """How the inputs of a model follow from its main input.

    Attributes:
        name: Name of the main input, such as `input_ids` or `pixel_values`.
        pad_token_id: The padding token; None if there is none.
        text_token_ids: Tokens that begin or end a text.
        begins_with: The token that begins a text; None if there is none.
    """

    name: str
    pad_token_id: int | None
    text_token_ids: frozenset[int]
    begins_with: int | None

    @classmethod
    def from_model(cls, model: nn.Module, pad_token_id: int | None = None) -> "MainInput":
        """The main input of a model of transformers; by default the padding token is that of its configuration."""
        config: Any = getattr(model, "config", None)
        get_text_config = getattr(config, "get_text_config", lambda: config)
        config = get_text_config()
        pad = getattr(config, "pad_token_id", None) if pad_token_id is None else pad_token_id
        begin = getattr(config, "bos_token_id", None)
        ends = getattr(config, "eos_token_id", None)
        ends = ends if isinstance(ends, list | tuple) else [ends]
        text_token_ids = frozenset(token for token in (begin, *ends) if token is not None)
        return cls(getattr(model, "main_input_name", "input_ids"), pad, text_token_ids, begin)

    def make_model_inputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """The model's arguments: the main input, and the attention mask of token ids if there is a padding token.

        Raises:
            ValueError: The token ids do not show which tokens are padding.
        """
        model_inputs = {self.name: inputs}
        if self.name == "input_ids" and (mask := self.make_attention_mask(inputs)) is not None:
            model_inputs["attention_mask"] = mask
        return model_inputs

    def make_attention_mask(self, ids: Tensor) -> Tensor | None:
        """The mask of all tokens but padding, of the shape of the ids; None without a padding token.

        Padding is every padding token; if it begins or ends texts as well, only those at one end of the rows.

        Raises:
            ValueError: Tokens at the ends of rows may be padding or tokens of a text.
        """
        pad = self.pad_token_id
        if pad is None:
            if self._may_be_left_padded(ids):
                raise ValueError(
                    self._explain_ambiguity(
                        "the model has no padding token, and some rows begin with a token that ends texts"
                    )
                )
            return None
        is_pad = ids.eq(pad)
        if pad not in self.text_token_ids:
            return (~is_pad).long()
        is_left, is_right = select_leading_run(is_pad), select_leading_run(is_pad.flip(-1)).flip(-1)
        if is_left.any() and (pad == self.begins_with or is_right.any()):
            raise ValueError(
                self._explain_ambiguity(
                    f"the padding token {pad} is a token of texts too, and some rows begin with it"
                )
            )
        return (~(is_left | is_right)).long()

    def explain_difference(self, batch: Mapping[str, Any], label_names: Collection[str] = ()) -> str | None:
        """What a training batch passes to the model that the main input alone does not determine.

        Returns:
            A sentence, or None if `make_model_inputs` makes the same inputs from the main input.
        """
        ids, mask = batch.get(self.name), batch.get("attention_mask")
        names = [name for name in batch if name not in LABEL_NAMES | {self.name, "attention_mask", *label_names}]
        further = [name for name in names if isinstance(batch[name], Tensor) and not is_default(name, batch[name])]
        if further:
            return f"training passed further inputs ({', '.join(sorted(further))})"
        if self.name != "input_ids" or not isinstance(ids, Tensor):
            return None
        try:
            implied = self.make_attention_mask(ids)
        except ValueError as error:
            return str(error).partition(":")[0]
        ones = torch.ones_like(ids)
        trained = ones if not isinstance(mask, Tensor) or mask.shape != ids.shape else mask.to(ids)
        if torch.equal(trained, ones if implied is None else implied.to(ids)):
            return None
        return f"the attention mask of training is not that of all tokens but the padding token ({self.pad_token_id})"

    def _may_be_left_padded(self, ids: Tensor) -> bool:
        """Whether rows of a model without padding token begin with more than the token that begins a text.

        Padding at the end of a row makes no difference to these models, which are causal.
        """
        tokens = torch.tensor(sorted(self.text_token_ids), device=ids.device, dtype=ids.dtype)
        run_lengths = select_leading_run(torch.isin(ids, tokens)).sum(-1)
        is_begun = ids[..., :1].eq(-1 if self.begins_with is None else self.begins_with).all()
        return bool((run_lengths > (1 if is_begun else 0)).any())

    def _explain_ambiguity(self, reason: str) -> str:
        return (
            f"The token ids do not show which tokens are padding, since {reason}: pass a dictionary with "
            "attention_mask as the tokenizer makes it, predict({'input_ids': ids, 'attention_mask': mask})."
        )


class Logits(nn.Module):
    """A model of transformers as a network that takes its main input, or a dictionary of inputs, and returns logits.

    A dictionary, such as the output of a tokenizer, is passed to the model as it is. For a tensor of token ids, the
    attention mask covers every token but padding; ids that do not show which tokens are padding are refused.

    Args:
        model: A model whose output has `logits`, as an attribute or by name; or is a tuple that begins with them, or
            a tensor.
        pad_token_id: The padding token; None takes that of the model's configuration, without which there is no mask,
            as for images.

    Attributes:
        tensor_refusal: Why a tensor does not determine the inputs of training, so that a dictionary is required; None
            if it does.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> settings = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> network = Logits(BertForSequenceClassification(settings))
        >>> network(torch.arange(1, 6)[None]).shape
        torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module, pad_token_id: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.main_input = MainInput.from_model(model, pad_token_id)
        self.tensor_refusal: str | None = None

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch.

        Args:
            inputs: The model's main input, token ids of shape (batch, length) or images; or all inputs by name.

        Raises:
            ValueError: A tensor does not determine the inputs of the model.
        """
        if isinstance(inputs, Tensor):
            if self.tensor_refusal is not None:
                name = self.main_input.name
                raise ValueError(
                    f"A tensor of {name} does not determine the inputs of the model: {self.tensor_refusal}. Pass a "
                    f"dictionary of all inputs, predict({{'{name}': ..., 'attention_mask': ...}}), or make the "
                    "posterior with wrap=."
                )
            inputs = self.main_input.make_model_inputs(inputs)
        return select_logits(self.model(**inputs))


def select_logits(outputs: Any) -> Tensor:
    """The logits among the outputs of a model that got no labels.

    >>> select_logits({"hidden": torch.ones(2), "logits": torch.zeros(2)})
    tensor([0., 0.])
    """
    if isinstance(outputs, Tensor):
        return outputs
    return select_output(outputs, 0 if isinstance(outputs, tuple | list) else LOGITS)


def select_leading_run(matches: Tensor) -> Tensor:
    """The matches at the beginning of each row, without a gap; boolean, of the same shape."""
    return matches.long().cumprod(-1).bool()


def is_default(name: str, value: Tensor) -> bool:
    """Whether a model computes the same without this input: token types of one segment."""
    return name == "token_type_ids" and not value.any()
