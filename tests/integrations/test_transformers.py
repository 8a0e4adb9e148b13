import math

import pytest
import torch
from torch import nn

from flatbayes import (
    GSAM,
    MSAM,
    SAM,
    SWAG,
    Categorical,
    FittedPosterior,
    Laplace,
    LookSAM,
    Plain,
    TrainingConfig,
    TrainingProgress,
    VaSSO,
    fit,
)
from flatbayes.training.trial import NetworkWarning
from support import alternating_params

transformers = pytest.importorskip("transformers")

from flatbayes.integrations.model_inputs import MainInput  # noqa: E402
from flatbayes.integrations.tracker_config import TRACKER_FILE_NAME  # noqa: E402
from flatbayes.integrations.transformers import FlatTrainer, FlatTrainerMixin, Logits  # noqa: E402

BATCHES, SIZE, LENGTH, PAD = 6, 4, 7, 0


def config(**options):
    settings = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings |= {"intermediate_size": 16, "max_position_embeddings": 16, "num_labels": 3, "pad_token_id": PAD}
    return transformers.BertConfig(**(settings | options))


def bert(**options):
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(config(**options))


def llama():
    torch.manual_seed(1)
    settings = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=16, **settings))


def examples(kind="classes"):
    if kind == "tokens":
        found = examples()
        for example in found:
            ids = example["input_ids"]
            example["labels"] = torch.where(ids == PAD, -100, ids)
        return found
    generator = torch.Generator().manual_seed(3)
    found = []
    for k in range(BATCHES * SIZE):
        ids = torch.randint(1, 20, (LENGTH,), generator=generator)
        ids[LENGTH - k % 3 :] = PAD
        found.append({"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": torch.tensor(k % 3)})
    return found


class InOrder:
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Ordered(InOrder, FlatTrainer):
    pass


class OrderedPlain(InOrder, transformers.Trainer):
    pass


def arguments(folder, **options):
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": SIZE, "learning_rate": 1e-2, "seed": 5}
    settings |= {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "adamw_torch",
    }
    settings |= {"max_grad_norm": 0.0, "logging_strategy": "epoch", "dataloader_pin_memory": False}
    return transformers.TrainingArguments(str(folder), **(settings | options))


def trained(folder, flatness=Plain(), kind=Ordered, model=None, resume=None, swag=None, data=None, **options):
    extra = {} if kind is OrderedPlain else {"flatness": flatness, "posterior": swag, "start_fraction": 0.5}
    if swag is not None:
        extra["snapshots_per_epoch"] = 1
    run = kind(model or bert(), arguments(folder, **options), train_dataset=data or examples(), **extra)
    run.train(resume)
    return run


def by_hand(flatness, *, accumulate=1, epochs=3, clip=0.0, bf16=False, swag=None, model=None, data=None):
    """The same training in a loop of one's own."""
    model = model or bert()
    transformers.set_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    steps_per_epoch = math.ceil(BATCHES / accumulate)
    total = epochs * steps_per_epoch
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, total)
    course = TrainingProgress(total_steps=total)
    state = None if swag is None else swag.init(model, None, BATCHES * SIZE)
    data = data or examples()
    stacked = {key: torch.stack([example[key] for example in data]) for key in data[0]}
    parts = [{key: value[k : k + SIZE] for key, value in stacked.items()} for k in range(0, BATCHES * SIZE, SIZE)]
    model.train()
    for _ in range(epochs):
        torch.empty((), dtype=torch.int64).random_()  # what the iterator of a DataLoader takes
        for k in range(0, BATCHES, accumulate):
            now = parts[k : k + accumulate]
            items = sum((part["labels"][..., 1:] != -100).sum() for part in now)

            def closure(now=now, items=items):
                model.zero_grad()
                found = torch.zeros(())
                for part in now:
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        loss = model(**part, num_items_in_batch=items).loss  # that of BERT is a mean all the same
                    loss.backward()
                    found += loss.detach()
                return found

            flatness(closure, model, course)()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            course.advance()
        if swag is not None and course.step / total > 0.5:
            swag.collect(state)
    return model, state


def assert_equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


FLATNESSES = [SAM(rho=0.2), LookSAM(rho=0.2, period=2), MSAM(rho=0.2), GSAM(rho=0.2), VaSSO(rho=0.2), Plain()]


@pytest.mark.parametrize(("flatness", "accumulate"), alternating_params(FLATNESSES, [1, 4]), ids=repr)
def test_equals_a_loop_of_ones_own(flatness, accumulate, tmp_path):
    run = trained(tmp_path, flatness, gradient_accumulation_steps=accumulate)
    assert_equal(run.model, by_hand(flatness, accumulate=accumulate)[0])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_plain_is_the_trainer(accumulate, tmp_path):
    ours = trained(tmp_path, Plain(), gradient_accumulation_steps=accumulate)
    theirs = trained(tmp_path, kind=OrderedPlain, gradient_accumulation_steps=accumulate)
    assert_equal(ours.model, theirs.model)
    for one, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for name in {"loss", "grad_norm", "learning_rate", "train_loss"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_tokens_count_the_same_in_all_micro_batches(accumulate, tmp_path):
    data = examples("tokens")
    run = trained(tmp_path, SAM(rho=0.2), model=llama(), data=data, gradient_accumulation_steps=accumulate)
    assert_equal(run.model, by_hand(SAM(rho=0.2), accumulate=accumulate, model=llama(), data=data)[0])


def test_clips_the_final_gradient(tmp_path):
    run = trained(tmp_path, SAM(rho=0.2), max_grad_norm=0.05, gradient_accumulation_steps=2)
    assert_equal(run.model, by_hand(SAM(rho=0.2), accumulate=2, clip=0.05)[0])


def test_bf16(tmp_path):
    run = trained(tmp_path, SAM(rho=0.2), bf16=True, gradient_accumulation_steps=2)
    assert_equal(run.model, by_hand(SAM(rho=0.2), accumulate=2, bf16=True)[0])


def test_trained_weights_of_low_precision_give_a_warning(tmp_path):
    with pytest.warns(NetworkWarning, match=r"are bfloat16.*use TrainingArguments\(bf16=True\) where"):
        trained(tmp_path, SAM(), model=bert().bfloat16(), num_train_epochs=1)


def test_labels_may_be_taken_out(tmp_path):
    data = examples()
    trained(tmp_path, SAM(rho=0.2), data=data, label_smoothing_factor=0.1, gradient_accumulation_steps=2)


def test_swag_equals_a_loop_of_ones_own(tmp_path):
    run = trained(tmp_path, SAM(rho=0.2), swag=SWAG(rank=3), num_train_epochs=4)
    model, state = by_hand(SAM(rho=0.2), swag=SWAG(rank=3), epochs=4)
    assert_equal(run.model, model)
    found = run._tracker.steps.state.statistics
    assert found["count"] == 2
    for name, tensor in state.statistics.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(("flatness", "at"), alternating_params([SAM(rho=0.2), MSAM(rho=0.2)], [6, 19]), ids=repr)
def test_resumes_bit_for_bit(flatness, at, tmp_path):
    options = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": at, "swag": SWAG(rank=3)}
    whole = trained(tmp_path / "one", flatness, **options)
    folder = tmp_path / "one" / f"checkpoint-{at}"
    again = trained(tmp_path / "two", flatness, resume=str(folder), **options)
    assert_equal(whole.model, again.model)
    one, other = whole._tracker, again._tracker
    assert one.progress.step == other.progress.step == 24
    assert int(one.steps.state.statistics["count"]) == 2
    for name, tensor in one.steps.state.statistics.items():
        assert torch.equal(other.steps.state.statistics[name], tensor)
    assert one.progress.flatness_state.keys() == other.progress.flatness_state.keys()


def test_resumes_the_last_checkpoint(tmp_path):
    options = {"save_strategy": "epoch", "swag": SWAG(rank=2)}
    trained(tmp_path, SAM(rho=0.2), **options)
    again = trained(tmp_path, SAM(rho=0.2), resume=True, **options)
    assert again._tracker.progress.step == 18


def test_checkpoint_without_ours(tmp_path):
    trained(tmp_path, kind=OrderedPlain, save_strategy="epoch")
    with pytest.raises(FileNotFoundError, match=TRACKER_FILE_NAME):
        trained(tmp_path, SAM(rho=0.2), resume=True)


@pytest.mark.parametrize("bf16", [False, True])
def test_posterior_predicts_saves_and_loads(bf16, tmp_path):
    run = trained(tmp_path, SAM(rho=0.05), swag=SWAG(rank=2), num_train_epochs=4, bf16=bf16)
    fitted = run.make_posterior(Categorical(3))
    ids = torch.stack([example["input_ids"] for example in examples()])
    mask = torch.stack([example["attention_mask"] for example in examples()])
    predictive = fitted.predict(ids, num_draws=3)
    for network in fitted.sample_networks(1):
        direct = network.model(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(network(ids), direct)
    again = FittedPosterior.load(fitted.save(tmp_path / "kept"), Logits(bert()))
    assert torch.equal(again.predict(ids, num_draws=3).log_probs, predictive.log_probs)
    assert fitted.states[0].num_data == BATCHES * SIZE


class Subset(FlatTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SubsetRandomSampler(range(10))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [(Subset, {}, 10), (Subset, {"dataloader_drop_last": True}, 8), (Ordered, {}, BATCHES * SIZE)],
)
def test_num_data_is_what_an_epoch_gives(kind, options, expected, tmp_path):
    run = trained(tmp_path, kind=kind, swag=SWAG(rank=2), num_train_epochs=6, **options)
    assert run.make_posterior(Categorical(3)).states[0].num_data == expected


def test_a_likelihood_of_other_outputs_is_refused_before_the_first_prediction(tmp_path):
    run = trained(tmp_path, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"outputs of shape \(1, 3\), but there are 5 classes"):
        run.make_posterior(Categorical(5))


def test_posterior_over_some_parameters(tmp_path):
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    run = FlatTrainer(
        model,
        arguments(tmp_path),
        train_dataset=examples(),
        flatness=SAM(rho=0.05),
        posterior=SWAG(rank=2),
        start_fraction=0.5,
        params=["classifier.*"],
    )
    run.train()
    fitted = run.make_posterior(Categorical(3))
    size = sum(p.numel() for p in model.classifier.parameters())
    assert len(fitted.states[0].statistics["mean"]) == size
    assert sum(p.numel() for p in fitted.states[0].model.parameters() if p.requires_grad) == size
    inner = fitted.states[0].model.model
    assert inner.bert.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    assert inner.bert.pooler.dense.weight is not model.bert.pooler.dense.weight
    assert model.bert.pooler.dense.weight.requires_grad
    ids = torch.stack([example["input_ids"] for example in examples()])
    before = fitted.predict(ids, num_draws=2).log_probs
    run.train()
    assert torch.equal(fitted.predict(ids, num_draws=2).log_probs, before)


def test_refuses(tmp_path):
    with pytest.raises(TypeError, match="'swag': it was renamed to posterior"):
        FlatTrainer(bert(), arguments(tmp_path), swag=SWAG())
    with pytest.raises(ValueError, match="start_fraction"):
        FlatTrainer(bert(), arguments(tmp_path), posterior=SWAG(), start_fraction=1.0)
    with pytest.raises(TypeError, match=r"needs a flatness or a posterior, .* flatness=Plain\(\) says so"):
        FlatTrainer(bert(), arguments(tmp_path), train_dataset=examples())
    assert FlatTrainer(bert(), arguments(tmp_path), posterior=SWAG()).flatness == Plain()
    run = FlatTrainer(bert(), arguments(tmp_path), train_dataset=examples(), flatness=Plain())
    with pytest.raises(RuntimeError, match="train"):
        run.make_posterior(Categorical(3))


@pytest.mark.parametrize("options", [{"num_train_epochs": 1}, {"num_train_epochs": 3}, {"max_steps": 5}], ids=str)
def test_defaults_collect_enough_in_a_short_training(options, tmp_path):
    run = FlatTrainer(bert(), arguments(tmp_path, **options), train_dataset=examples(), posterior=SWAG(rank=2))
    run.train()
    ids = torch.stack([example["input_ids"] for example in examples()])
    assert run.make_posterior(Categorical(3)).predict(ids, 3).entropy.isfinite().all()


@pytest.mark.parametrize(
    ("flatness", "accumulate"), alternating_params([SAM(0.1), LookSAM(0.1, period=2), MSAM(0.1)], [1, 2]), ids=repr
)
def test_an_optimizer_of_a_part_trains_as_if_the_rest_were_frozen(flatness, accumulate, tmp_path):
    partial, frozen = bert(), bert()
    frozen.bert.requires_grad_(False)
    for model in (partial, frozen):
        optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
        options = {"num_train_epochs": 2, "gradient_accumulation_steps": accumulate}
        run = Ordered(
            model,
            arguments(tmp_path, **options),
            train_dataset=examples(),
            flatness=flatness,
            posterior=SWAG(rank=2),
            start_fraction=0.0,
            optimizers=(optimizer, None),
        )
        run.train()
    for name, values in frozen.state_dict().items():
        torch.testing.assert_close(partial.state_dict()[name], values, rtol=0, atol=1e-6)
    for name, values in bert().bert.state_dict().items():
        assert torch.equal(partial.bert.state_dict()[name], values)
    assert all(param.requires_grad for param in partial.parameters())


LAPLACE_OPTIONS = [
    ("last_layer", "linearised", ()),
    ("diag", "linearised", ()),
    ("diag", "sampled", ()),
    ("kron", "sampled", ["*embeddings*", "*LayerNorm*"]),
]


@pytest.mark.parametrize(("structure", "predictive", "freeze"), LAPLACE_OPTIONS)
def test_laplace_of_a_model_with_dictionaries_of_inputs(structure, predictive, freeze):
    batches = torch.utils.data.DataLoader(examples(), batch_size=SIZE, generator=torch.Generator())
    posterior, training = Laplace(structure, predictive, prior_precision=1.0), TrainingConfig(epochs=1)
    fitted = fit(bert, batches, posterior, SAM(0.1), training, likelihood=Categorical(3), freeze=freeze)
    batch = next(iter(batches))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    probs = fitted.predict(inputs, 3).mean
    assert probs.shape == (SIZE, 3)
    hidden = inputs | {"input_ids": torch.where(inputs["input_ids"] == PAD, 5, inputs["input_ids"])}
    torch.testing.assert_close(fitted.predict(hidden, 3).mean, probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "extra"), [({"max_steps": 2}, {}), ({"num_train_epochs": 3}, {"snapshots_per_epoch": 1})], ids=str
)
def test_too_few_snapshots_are_refused_before_the_first_step(options, extra, tmp_path):
    model = bert()
    before = model.classifier.weight.detach().clone()
    options = {"args": arguments(tmp_path, **options), "train_dataset": examples(), **extra}
    run = FlatTrainer(model, posterior=SWAG(rank=2), **options)
    with pytest.raises(ValueError, match="needs at least 2 collected snapshots.*collects 1"):
        run.train()
    assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_compute_loss_may_take_its_inputs_apart(accumulate, tmp_path):
    class Takes(Ordered):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            labels[0] = (labels[0] + 1) % 3  # in place: another loss each time that the same tensor comes
            return nn.functional.cross_entropy(model(**inputs).logits, labels) / accumulate

    class Leaves(Ordered):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = torch.cat([(inputs["labels"][:1] + 1) % 3, inputs["labels"][1:]])
            inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            return nn.functional.cross_entropy(model(**inputs).logits, labels) / accumulate

    options = {"num_train_epochs": 1, "gradient_accumulation_steps": accumulate}
    takes, leaves = (trained(tmp_path, SAM(rho=0.2), kind=kind, **options) for kind in (Takes, Leaves))
    assert_equal(takes.model, leaves.model)


def test_batches_of_iterators_are_refused(tmp_path):
    run = FlatTrainer(
        bert(),
        arguments(tmp_path),
        flatness=SAM(),
        train_dataset=examples(),
        data_collator=lambda rows: {"input_ids": iter(rows)},
    )
    with pytest.raises(ValueError, match="iterator"):
        run.train()


def gpt2(**options):
    torch.manual_seed(1)
    settings = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "num_labels": 3}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**(settings | options))).eval()


def pad_rows(side, pad=2):
    """Token ids of a text that has the padding token inside, and the tokenizer's mask."""
    texts = [[3, 2, 4, 5], [6, 7, 2, 8, 9, 10], [11]]
    ids, mask = torch.full((3, 6), pad), torch.zeros(3, 6, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(6 - len(text), 6)
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_the_tokenizers_mask(side):
    ids, mask = pad_rows(side)
    model = gpt2()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert not torch.allclose(model(input_ids=ids, attention_mask=ids.ne(2).long()).logits, expected)
        assert torch.equal(Logits(model)(ids), expected)
        assert torch.equal(Logits(model)({"input_ids": ids, "attention_mask": mask}), expected)
        assert torch.equal(Logits(gpt2(pad_token_id=0), pad_token_id=2).main_input.make_attention_mask(ids), mask)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"bos_token_id": 2}, [[2, 3, 4], [5, 6, 7]]),  # the first token begins a text, or is padding
        (
            {},
            [[2, 3, 4], [5, 6, 2]],
        ),  # padding on the left of a text that ends, or on the right of one that begins so
        ({"pad_token_id": None}, [[2, 2, 4], [5, 6, 7]]),
        ({"pad_token_id": None, "bos_token_id": 2}, [[2, 2, 4], [2, 6, 7]]),
    ],
)
def test_ids_that_do_not_show_the_padding_are_refused(options, rows):
    with pytest.raises(ValueError, match="do not show which tokens are padding.*attention_mask"):
        Logits(gpt2(**options))(torch.tensor(rows))


def test_without_a_padding_token_there_is_no_mask():
    for options in ({"bos_token_id": 2}, {"eos_token_id": None}, {"eos_token_id": [2, 3]}):
        main_input = MainInput.from_model(gpt2(**({"pad_token_id": None} | options)))
        rows = [[2, 5, 6], [2, 7, 2]] if options == {"bos_token_id": 2} else [[5, 6, 2], [7, 2, 2]]
        assert main_input.make_attention_mask(torch.tensor(rows)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e | {"token_type_ids": torch.ones(LENGTH, dtype=torch.long)}, "token_type_ids"),
        (lambda e: e | {"attention_mask": torch.ones(LENGTH, dtype=torch.long)}, "attention mask of training"),
        (
            lambda e: {name: value for name, value in e.items() if name != "attention_mask"},
            "attention mask of training",
        ),
        (lambda e: e | {"token_type_ids": torch.zeros(LENGTH, dtype=torch.long)}, None),
    ],
    ids=["segments", "pads attended", "no mask", "one segment"],
)
def test_a_tensor_that_does_not_determine_the_inputs_of_training_is_refused(change, reason, tmp_path):
    run = trained(tmp_path, data=[change(example) for example in examples()], num_train_epochs=1)
    fitted = run.make_posterior(Categorical(3))
    network, batch = fitted.states[0].model, {k: torch.stack([e[k] for e in examples()]) for k in examples()[0]}
    del batch["labels"]
    assert network(batch).shape == (BATCHES * SIZE, 3)
    if reason is None:
        assert fitted.predict(batch["input_ids"]).mean.isfinite().all()
        return
    with pytest.raises(ValueError, match=f"{reason}.*dictionary"):
        fitted.predict(batch["input_ids"])


def test_any_trainer():
    class Theirs(FlatTrainerMixin, transformers.Seq2SeqTrainer):
        pass

    assert Theirs.training_step is FlatTrainerMixin.training_step


def test_logits_of_images():
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **settings)
    )
    assert Logits(vit)(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        return peft.get_peft_model(bert(), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))

    run = trained(tmp_path, SAM(rho=0.05), model=adapted(), swag=SWAG(rank=2), num_train_epochs=4)
    fitted = run.make_posterior(Categorical(3))
    assert len(fitted.states[0].statistics["mean"]) == 2 * 2 * 16 + 16 * 3 + 3
    ids = torch.stack([example["input_ids"] for example in examples()])
    again = FittedPosterior.load(fitted.save(tmp_path / "kept"), Logits(adapted()))
    one, other = (posterior.predict(ids, num_draws=3) for posterior in (fitted, again))
    assert torch.equal(one.log_probs, other.log_probs)


class OwnModel(nn.Module):
    """No model of transformers; without labels its outputs are a dictionary, a tuple or a tensor."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(5, 3), form

    def forward(self, features=None, labels=None):
        logits = self.layer(features)
        if labels is not None:
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        return {"dict": {"logits": logits, "features": features}, "tuple": (logits, features)}.get(self.form, logits)


@pytest.mark.parametrize("form", ["dict", "tuple", "tensor"])
def test_models_with_plain_outputs_make_predictions(form, tmp_path):
    x, y = torch.randn(16, 5), torch.arange(16) % 3
    rows = [{"features": row, "labels": label} for row, label in zip(x, y, strict=True)]
    trainer = FlatTrainer(
        model=OwnModel(form), args=arguments(tmp_path), train_dataset=rows, flatness=SAM(), posterior=SWAG(rank=2)
    )
    trainer.train()
    fitted = trainer.make_posterior(Categorical(3))
    predictive = fitted.predict({"features": x}, 2)
    again = FittedPosterior.load(fitted.save(tmp_path / "kept"), Logits(OwnModel(form)))
    assert torch.equal(again.predict({"features": x}, 2).log_probs, predictive.log_probs)
