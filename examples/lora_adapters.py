# %% A posterior over the adapters of a language model only
# The model is tiny and its initial weights are random, so that no download is needed.
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

# %% Sentences about films from templates; one word makes them good or bad
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


def make_sentences() -> list[dict[str, torch.Tensor]]:
    examples = []
    for thing, adverb, word in itertools.product(THINGS, ADVERBS, GOOD + BAD):
        ids = encode(f"the {thing} was {adverb} {word}")
        label = torch.tensor(int(word in GOOD))
        examples.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": label})
    return examples


# %% Adapters of rank 4 in every attention layer, and a new head; all other weights are frozen
def make_adapted_model() -> torch.nn.Module:
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


model = make_adapted_model()
trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
print(f"{trained} of {sum(param.numel() for param in model.parameters())} weights are trained")

# %% The usual Trainer with two more arguments
order = torch.randperm(len(make_sentences()), generator=torch.Generator().manual_seed(0)).tolist()
data = [make_sentences()[k] for k in order]
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
trainer = FlatTrainer(model, arguments, train_dataset=train, flatness=SAM(rho=0.05), posterior=SWAG(rank=10))
trainer.train()

# %% Thirty sets of adapters predict together; entropy is higher for words that are not in the training data
fitted = trainer.make_posterior(Categorical(2))
map_network = FittedPosterior(MAP(), fitted.states, Categorical(2))
inputs, targets = (torch.stack([example[key] for example in test]) for key in ("input_ids", "labels"))
generator = torch.Generator().manual_seed(1)
unfamiliar_ids = []
for _ in range(200):
    first, second = (UNFAMILIAR[k] for k in torch.randperm(len(UNFAMILIAR), generator=generator)[:2].tolist())
    unfamiliar_ids.append(encode(f"the {first} was quite {second}"))
for name, posterior in (("one network", map_network), ("posterior", fitted)):
    metrics = evaluate(posterior, inputs, targets).metrics
    familiar, unfamiliar = (
        posterior.predict(ids).entropy.mean().item() for ids in (inputs, torch.stack(unfamiliar_ids))
    )
    print(f"{name}: accuracy {metrics['accuracy']:.3f}, nll {metrics['nll']:.3f}", end=", ")
    print(f"entropy {familiar:.3f}, on unfamiliar words {unfamiliar:.3f}")

# %% The artefact is data; it is loaded into the same architecture
folder = fitted.save(Path(mkdtemp()) / "adapters")
reloaded = FittedPosterior.load(folder, Logits(make_adapted_model()))
assert torch.equal(reloaded.predict(inputs).log_probs, fitted.predict(inputs).log_probs)
print(f"the posterior is over {len(fitted.states[0].statistics['mean'])} weights")
