"""Classification by answer tokens: a causal language model as a classifier of what follows a prompt.

The logit of a class is that of its answer, such as " A" or " yes", after the last token of the prompt, as in
Laplace-LoRA (Yang et al., ICLR 2024), BLoB and TFB. The softmax is over the answers alone, not over the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes.core.input_trees import IGNORE_INDEX
from flatbayes.core.optional import require_package
from flatbayes.core.signatures import read_signature
from flatbayes.integrations.model_inputs import MainInput, select_logits

if TYPE_CHECKING:
    from transformers.modeling_outputs import SequenceClassifierOutput


class AnswerClassifier(nn.Module):
    """A causal language model whose outputs are the logits of answers to a prompt, one for each class.

    It is a network for `fit` and `compare`, and a model for the Trainer of transformers. Prompts are padded on either
    side: they are moved to the right end, so that both give the same outputs. Adapters of PEFT stay where they are.

    Args:
        model: A causal language model of transformers, with or without adapters.
        answer_ids: The token of each answer, in the order of the classes: see `find_answer_ids`.
        pad_token_id: The padding token, for token ids without an attention mask; None takes that of the model's
            configuration.

    Attributes:
        answer_ids: Tensor of these tokens, which is saved with the weights.
        main_input_name: Name of the token ids.

    Raises:
        ValueError: There are fewer than two answers, two are equal, or one is no token of the model.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> network = AnswerClassifier(LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)), answer_ids=[7, 9])
        >>> prompts = {"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.ones(2, 4).long()}
        >>> fitted = fit(network, (prompts, torch.tensor([0, 1])), MAP(), config=config)
        >>> fitted.predict(prompts).mean.shape
        torch.Size([2, 2])
    """

    main_input_name = "input_ids"
    answer_ids: Tensor

    def __init__(self, model: nn.Module, answer_ids: Sequence[int], pad_token_id: int | None = None) -> None:
        super().__init__()
        ids = torch.as_tensor(answer_ids)
        if ids.ndim != 1 or len(ids) < 2 or ids.is_floating_point() or len(ids.unique()) < len(ids):
            raise ValueError(
                f"answer_ids must be one token for each class, all different, got {answer_ids!r}. "
                "find_answer_ids(tokenizer, answers) gives them for texts."
            )
        embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
        num_tokens = getattr(embedding, "num_embeddings", None)
        if num_tokens is not None and not bool(((ids >= 0) & (ids < num_tokens)).all()):
            raise ValueError(f"answer_ids must be tokens of the model, 0 to {num_tokens - 1}, got {ids.tolist()}.")
        self.model = model
        self.main_input = MainInput.from_model(model, pad_token_id)
        self.register_buffer("answer_ids", ids.long())
        get_base: Any = getattr(model, "get_base_model", lambda: model)  # of PEFT, whose forward takes any name
        self._parameter_names = frozenset(read_signature(get_base().forward).parameters)

    @property
    def config(self) -> Any:
        """Configuration of the language model; None without one."""
        return getattr(self.model, "config", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> "SequenceClassifierOutput":
        """Logits of the answers after the last token of each prompt, and the loss if there are labels.

        Args:
            input_ids: Token ids, shape (batch, length), padded on either side.
            attention_mask: 1 for tokens and 0 for padding; None covers every token but the padding token.
            labels: Index of the right answer, 0 for the first, shape (batch,).
            **inputs: Further inputs of the model; those with an entry for each token are moved like the tokens.

        Raises:
            ValueError: The token ids do not show which tokens are padding.
        """
        if attention_mask is None:
            attention_mask = self.main_input.make_attention_mask(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        prompts = align_right({**inputs, "input_ids": input_ids, "attention_mask": attention_mask}, attention_mask)
        options = {"position_ids": (prompts["attention_mask"].cumsum(-1) - 1).clamp_min(0), "use_cache": False}
        options["logits_to_keep"] = 1
        options = {name: value for name, value in options.items() if name in self._parameter_names - prompts.keys()}
        logits: Tensor = select_logits(self.model(**prompts, **options))[:, -1, self.answer_ids]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels.reshape(-1).long(), ignore_index=IGNORE_INDEX)
        return _make_output(logits, loss)


def align_right(inputs: Mapping[str, Any], attention_mask: Tensor) -> dict[str, Any]:
    """Inputs with the last token of every row at the end, and padding at the beginning.

    Inputs of another shape than the mask, (batch, length), stay as they are.

    >>> ids, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    >>> align_right({"input_ids": ids}, mask)["input_ids"]
    tensor([[0, 5, 6],
            [7, 8, 9]])
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = torch.where(attention_mask > 0, positions, -1).amax(1, keepdim=True)
    source = (positions + last + 1) % len(positions)

    def move(value: Any) -> Any:
        is_by_token = isinstance(value, Tensor) and value.shape == attention_mask.shape
        return value.gather(1, source) if is_by_token else value

    return {name: move(value) for name, value in inputs.items()}


def find_answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """The token of each answer.

    Args:
        tokenizer: A tokenizer of transformers.
        answers: Texts of one token each, as they follow the prompt: most tokenizers need the space, " A", unless the
            prompt ends with one.

    Raises:
        ValueError: An answer is not one token, or has the token of another one.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = models.WordLevel({"?": 0, "yes": 1, "no": 2}, unk_token="?")
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="?")
        >>> find_answer_ids(tokenizer, ["yes", "no"])
        [1, 2]
    """
    tokens = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    for answer, ids in zip(answers, tokens, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            shown = tokenizer.convert_ids_to_tokens(ids)
            raise ValueError(
                f"The answer {answer!r} must be one token of the vocabulary, and the tokenizer makes {shown} of it. "
                'Choose answers of one token, such as " A" and " B", with or without the space.'
            )
    ids = [token for (token,) in tokens]
    if len(set(ids)) < len(ids):
        raise ValueError(f"Two of the answers {list(answers)} are the same token: {ids}. Choose different ones.")
    return ids


def _make_output(logits: Tensor, loss: Tensor | None) -> "SequenceClassifierOutput":
    with require_package("transformers"):
        from transformers.modeling_outputs import SequenceClassifierOutput
    return SequenceClassifierOutput(loss=loss, logits=logits)
