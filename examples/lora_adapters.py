# %% A posterior over the adapters of a language model, and over nothing else
# The model is tiny and its weights are random, so that this runs anywhere, without a download.
import itertools
import warnings
from pathlib import Path
from tempfile import mkdtemp

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed
from transformers.utils import logging

from flatbayes import MAP, SAM, SWAG, Categorical, FittedPosterior, evaluate
from flatbayes.integrations.transformers import FlatTrainer, Logits

logging.set_verbosity_error()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # in peft

# %% Sentences about films, made from templates: good or bad, which one word of them says
GOOD = ["lovely", "funny", "clever", "moving", "bright", "charming", "tender", "witty"]
BAD = ["dull", "boring", "stupid", "weak", "noisy", "tired", "clumsy", "flat"]
THINGS = ["film", "story", "plot", "cast", "music", "ending", "dialogue", "picture"]
ADVERBS = ["really", "quite", "rather", "very"]
UNFAMILIAR = ["oxide", "femur", "ledger", "axle", "quartz", "tendon", "tariff", "piston", "gravel", "sonnet"]
VOCABULARY = ["[PAD]", "[CLS]", "the", "was", *GOOD, *BAD, *THINGS, *ADVERBS, *UNFAMILIAR]
LENGTH = 7


def encode(sentence: str) -> torch.Tensor:
    ids = [VOCABULARY.index(word) for word in ["[CLS]", *sentence.split()]]
    return torch.tensor(ids + [0] * (LENGTH - len(ids)))


def sentences() -> list[dict[str, torch.Tensor]]:
    found = []
    for thing, adverb, word in itertools.product(THINGS, ADVERBS, GOOD + BAD):
        ids = encode(f"the {thing} was {adverb} {word}")
        label = torch.tensor(int(word in GOOD))
        found.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": label})
    return found


# %% Adapters of rank 4 in every attention layer, and a new head; the rest is frozen
def adapted() -> torch.nn.Module:
    set_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.1,
        num_labels=2,
        pad_token_id=0,
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    return get_peft_model(BertForSequenceClassification(config), lora)


model = adapted()
trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
print(f"{trained} of {sum(param.numel() for param in model.parameters())} weights are trained")

# %% The Trainer as always, with two arguments more
order = torch.randperm(len(sentences()), generator=torch.Generator().manual_seed(0)).tolist()
data = [sentences()[k] for k in order]
train, test = data[:200], data[200:]
arguments = TrainingArguments(
    mkdtemp(),
    num_train_epochs=10,
    per_device_train_batch_size=10,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    bf16=True,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
    save_strategy="no",
    logging_strategy="no",
    dataloader_pin_memory=False,
)
trainer = FlatTrainer(model, arguments, train_dataset=train, flatness=SAM(rho=0.05), swag=SWAG(rank=10))
trainer.train()

# %% Thirty sets of adapters predict together; words that they have never seen leave them less sure
fitted = trainer.make_posterior(Categorical(2))
alone = FittedPosterior(MAP(), fitted.states, Categorical(2))
inputs, targets = (torch.stack([example[key] for example in test]) for key in ("input_ids", "labels"))
picked = torch.Generator().manual_seed(1)
strange = []
for _ in range(200):
    one, two = (UNFAMILIAR[k] for k in torch.randperm(len(UNFAMILIAR), generator=picked)[:2].tolist())
    strange.append(encode(f"the {one} was quite {two}"))
for name, posterior in (("one network", alone), ("posterior", fitted)):
    found = evaluate(posterior, inputs, targets).metrics
    familiar, unfamiliar = (posterior.predict(ids).entropy.mean().item() for ids in (inputs, torch.stack(strange)))
    print(f"{name}: accuracy {found['accuracy']:.3f}, nll {found['nll']:.3f}", end=", ")
    print(f"entropy {familiar:.3f}, on unfamiliar words {unfamiliar:.3f}")

# %% Kept as data; the same architecture reads it
folder = fitted.save(Path(mkdtemp()) / "adapters")
again = FittedPosterior.load(folder, Logits(adapted()))
assert torch.equal(again.predict(inputs).log_probs, fitted.predict(inputs).log_probs)
print(f"the posterior is over {len(fitted.states[0].statistics['mean'])} weights")
