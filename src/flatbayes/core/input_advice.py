"""Sentences for messages on inputs that a network cannot be called with."""

from torch import Tensor, nn

from flatbayes.core.input_trees import ModelInputs


def explain_inputs(network: nn.Module, inputs: ModelInputs) -> str:
    """What to change in the inputs, as sentences after a message without its full stop; empty if it is not known."""
    return explain_transposed(inputs) or explain_missing_decoder_inputs(network, inputs)


def explain_missing_decoder_inputs(network: nn.Module, inputs: ModelInputs) -> str:
    """Sentence on inputs of an encoder-decoder model of transformers without those of the decoder; empty for others.

    The model makes them of the labels, which are no inputs here.
    """
    is_decoder = bool(getattr(getattr(network, "config", None), "is_encoder_decoder", False))
    names = {"decoder_input_ids", "decoder_inputs_embeds"}
    if not is_decoder or not isinstance(inputs, dict) or names & inputs.keys():
        return ""
    return (
        ". It is an encoder-decoder model, whose batches need decoder_input_ids, the labels shifted by one: "
        "transformers.DataCollatorForSeq2Seq(tokenizer, model=model) adds them."
    )


def explain_transposed(inputs: ModelInputs) -> str:
    """Sentence for a message on entries of a dictionary that torch has made of lists of numbers; empty without any.

    The default collate function of a `DataLoader` makes of the lists of all examples one tensor for each position.
    """
    for key, value in inputs.items() if isinstance(inputs, dict) else ():
        is_row = isinstance(value, tuple) and len(value) > 1
        if is_row and all(isinstance(entry, Tensor) and entry.ndim == 1 for entry in value):
            return (
                f". The entry {key!r} is a tuple of {len(value)} tensors, one for each position, which torch makes "
                "of lists of numbers. Let the data set return tensors (with_format('torch') of a Hugging Face data "
                "set), or give the DataLoader a collate_fn, such as transformers.DataCollatorWithPadding(tokenizer)."
            )
    return ""
