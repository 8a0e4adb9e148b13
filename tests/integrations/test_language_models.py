"""Causal and encoder-decoder language models of transformers, and classification by answer tokens."""

import pytest
import torch
from torch.utils.data import DataLoader

from flatbayes import (
    MAP,
    SAM,
    SGVB,
    SWAG,
    TFB,
    Categorical,
    DenseCategorical,
    FittedPosterior,
    Laplace,
    TrainingConfig,
    evaluate,
    fit,
)
from flatbayes.posteriors import BLoB

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")

from flatbayes.integrations.transformers import AnswerClassifier, FlatTrainer, find_answer_ids  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

WORDS = ["<pad>", "<eos>", "A", "B", "C", *(f"w{k}" for k in range(30))]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = [" ".join(f"w{(k + j) % 30}" for j in range(3 + k % 5)) for k in range(40)]
CONFIG = TrainingConfig(epochs=3, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
NEXT_TOKEN = DenseCategorical(len(WORDS), class_dim=-1, shift_labels=True)
ANSWERS = [2, 3, 4]
LABELS = torch.tensor([len(text.split()) % 3 for text in TEXTS])


def make_tokenizer(side="right"):
    words = tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<eos>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>", padding_side=side
    )


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=1, **SIZES)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    """Positions are absolute, and the head is the embedding."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def encode(texts=TEXTS, side="right"):
    encoding = make_tokenizer(side)(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
    return dict(encoding)


def make_loader(collator="language_model", **options):
    tokenizer = make_tokenizer()
    rows = [tokenizer(text, return_token_type_ids=False) for text in TEXTS]
    if collator == "language_model":
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    elif collator == "default":
        rows = [{"input_ids": row["input_ids"][:3], "labels": row["input_ids"][:3]} for row in rows]
        collate = transformers.default_data_collator
    else:
        rows = [dict(row, labels=[-100, *row["input_ids"][1:]]) for row in rows]
        collate = transformers.DataCollatorForSeq2Seq(tokenizer, **options)
    return DataLoader(rows, batch_size=8, collate_fn=collate)


def measure_loss(model, loader):
    """NLL per token by the loss of transformers."""
    total, count = 0.0, 0
    for batch in loader:
        size = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total, count = total + float(model(**batch).loss) * size, count + size
    return total / count


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("collator", ["language_model", "default", "seq2seq"])
def test_the_nll_is_the_loss_of_transformers(build, collator):
    loader = make_loader(collator)
    fitted = fit(build(), loader, MAP(), SAM(rho=0.02), CONFIG)
    assert fitted.likelihood == NEXT_TOKEN
    model = build()
    model.load_state_dict(fitted.states[0].model.state_dict())
    assert evaluate(fitted, loader).metrics["nll"] == pytest.approx(measure_loss(model.eval(), loader), rel=1e-5)


def test_a_tied_tensor_counts_once_in_draws():
    fitted = fit(gpt2(), make_loader(), SWAG(rank=2), SAM(rho=0.02), CONFIG.with_options(epochs=8))
    assert fitted.states[0].statistics["mean"].numel() == sum(param.numel() for param in gpt2().parameters())
    drawn = next(iter(fitted.sample_networks(1)))
    assert drawn.lm_head.weight is drawn.transformer.wte.weight


def test_checkpointed_activations_change_nothing():
    model = llama()
    model.gradient_checkpointing_enable()
    plain, checkpointed = (fit(net, make_loader(), MAP(), SAM(rho=0.02), CONFIG) for net in (llama(), model))
    pairs = zip(plain.states[0].model.parameters(), checkpointed.states[0].model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_labels_of_an_encoder_decoder_model_are_not_shifted():
    loader = make_loader("seq2seq", model=t5())
    fitted = fit(t5(), loader, MAP(), SAM(rho=0.02), CONFIG)
    assert fitted.likelihood == DenseCategorical(len(WORDS), class_dim=-1)
    with pytest.raises(ValueError, match=r"shifted already.*decoder_input_ids"):
        fit(t5(), loader, MAP(), SAM(), CONFIG, likelihood=NEXT_TOKEN)
    with pytest.raises(ValueError, match=r"DataCollatorForSeq2Seq\(tokenizer, model=model\)"):
        fit(t5(), make_loader("seq2seq"), MAP(), SAM(), CONFIG)


def train(model, loader, folder, posterior, **options):
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=4, use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no", **options
    )
    data = {"train_dataset": loader.dataset, "data_collator": loader.collate_fn}
    trainer = FlatTrainer(model, arguments, flatness=SAM(rho=0.02), posterior=posterior, **data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [False, True])
def test_the_posterior_of_a_trainer_needs_shifted_labels(tmp_path, bf16):
    loader = make_loader()
    trainer = train(llama(), loader, tmp_path, MAP(), bf16=bf16, gradient_checkpointing=bf16)
    with pytest.raises(ValueError, match="shift_labels=True"):
        trainer.make_posterior(DenseCategorical(len(WORDS), class_dim=-1))
    fitted = trainer.make_posterior(NEXT_TOKEN)
    expected = measure_loss(fitted.states[0].model.model, loader)
    assert evaluate(fitted, loader).metrics["nll"] == pytest.approx(expected, rel=1e-5)


def make_classifier(build=llama, answers=ANSWERS):
    layers = ["c_attn"] if build is gpt2 else ["q_proj", "v_proj"]
    adapted = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=layers, task_type="CAUSAL_LM"))
    return AnswerClassifier(adapted, answers, pad_token_id=0)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_answers_follow_the_last_token_whatever_the_padding(build):
    classifier = make_classifier(build).eval()
    right, left = encode(), encode(side="left")
    with torch.no_grad():
        logits = classifier(**right).logits
        single = torch.cat([classifier.model(**encode([text])).logits[:, -1, ANSWERS] for text in TEXTS])
        torch.testing.assert_close(logits, single, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(classifier(**left).logits, logits)
        torch.testing.assert_close(classifier(right["input_ids"]).logits, logits)
        loss = classifier(**right, labels=LABELS).loss
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, LABELS))


POSTERIORS = [
    SWAG(rank=2),
    TFB(),
    BLoB(),
    SGVB(),
    Laplace("kron", prior_precision=1.0),
    Laplace("diag", tune="evidence"),
]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda posterior: type(posterior).__name__)
def test_posteriors_of_adapters_are_saved(posterior, tmp_path):
    val = (encode(side="left"), LABELS)
    config = CONFIG.with_options(epochs=6)
    fitted = fit(make_classifier(), (encode(), LABELS), posterior, SAM(rho=0.02), config, val=val)
    assert fitted.likelihood == Categorical(3)
    assert evaluate(fitted, val, num_draws=2).metrics["nll"] < 1.3
    folder = fitted.save(tmp_path, with_frozen=False)
    loaded = FittedPosterior.load(folder, make_classifier(answers=[5, 6, 7]))
    assert loaded.states[0].model.answer_ids.tolist() == ANSWERS
    assert torch.equal(loaded.predict(val[0], 2).log_probs, fitted.predict(val[0], 2).log_probs)


def test_a_trainer_takes_the_classifier(tmp_path):
    tokenizer = make_tokenizer()
    rows = [
        tokenizer(text, return_token_type_ids=False) | {"labels": int(label)}
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    loader = DataLoader(rows, batch_size=8, collate_fn=transformers.DataCollatorWithPadding(tokenizer))
    fitted = train(make_classifier(), loader, tmp_path, SWAG(rank=2)).make_posterior(Categorical(3))
    assert evaluate(fitted, loader, num_draws=2).metrics["nll"] < 1.3


@pytest.mark.parametrize("answers", [[2], [2, 2], [2, len(WORDS)], [0.5, 1.5], [[2], [3]]])
def test_answers_that_are_no_classes_are_refused(answers):
    with pytest.raises(ValueError, match="answer_ids must be"):
        AnswerClassifier(llama(), answers)


def test_answers_of_a_tokenizer():
    tokenizer = make_tokenizer()
    assert find_answer_ids(tokenizer, ["A", "B", " C"]) == ANSWERS
    with pytest.raises(ValueError, match=r"'w1 w2' must be one token.*\['w1', 'w2'\]"):
        find_answer_ids(tokenizer, ["A", "w1 w2"])
    with pytest.raises(ValueError, match="must be one token"):
        find_answer_ids(tokenizer, ["A", "unknown"])
    with pytest.raises(ValueError, match="same token"):
        find_answer_ids(tokenizer, ["A", " A"])
