"""Labels that are the inputs of a language model: which likelihood `fit` takes, what it refuses, and the metrics."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from flatbayes import MAP, SAM, SWAG, DenseCategorical, FittedPosterior, TrainingConfig, calibrate, evaluate, fit
from flatbayes.data.checks import DataWarning
from flatbayes.prediction import inputs as prediction_inputs
from flatbayes.prediction import position_stream
from flatbayes.training.label_shift import check_label_shift

NUM_TOKENS, LENGTH = 12, 7
CONFIG = TrainingConfig(epochs=20, batch_size=20, optimizer=lambda params: torch.optim.Adam(params, lr=0.02))
STARTS = torch.randint(NUM_TOKENS, (60, 1), generator=torch.Generator().manual_seed(0))
TOKENS = (STARTS + 3 * torch.arange(LENGTH)) % NUM_TOKENS  # the next token follows from the last one


class LanguageModel(nn.Module):
    """Outputs are logits for each token, from a GRU in one direction or in both."""

    def __init__(self, *, is_causal=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(NUM_TOKENS, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True, bidirectional=not is_causal)
        self.head = nn.Linear(16 if is_causal else 32, NUM_TOKENS)

    def forward(self, input_ids, decoder_input_ids=None):
        return self.head(self.rnn(self.embedding(input_ids))[0])


def make_loader(inputs=TOKENS, labels=TOKENS, **further):
    rows = [
        {"input_ids": x, "labels": y, **{name: values[k] for name, values in further.items()}}
        for k, (x, y) in enumerate(zip(inputs, labels, strict=True))
    ]
    return DataLoader(rows, batch_size=20)


@pytest.mark.parametrize("kind", ["pair", "loader", "rows", "batches"])
def test_the_next_token_is_learnt(kind):
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in TOKENS]
    batches = [({"input_ids": part}, part) for part in TOKENS.split(20)]
    data = {"pair": (TOKENS, TOKENS), "loader": make_loader(), "rows": rows, "batches": batches}[kind]
    fitted = fit(LanguageModel(), data, MAP(), SAM(rho=0.01), CONFIG)
    assert fitted.likelihood == DenseCategorical(NUM_TOKENS, class_dim=-1, shift_labels=True)
    metrics = evaluate(fitted, data).metrics
    assert metrics["accuracy"] > 0.9
    with torch.no_grad():
        logits = fitted.states[0].model(TOKENS)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert metrics["nll"] == pytest.approx(float(expected), rel=1e-5)


def test_only_the_answers_of_prompts_have_labels():
    labels = TOKENS.clone()
    labels[:, :4] = -100
    fitted = fit(LanguageModel(), make_loader(labels=labels), MAP(), SAM(rho=0.01), CONFIG)
    assert fitted.likelihood.shift_labels


def test_a_likelihood_that_compares_equal_positions_is_refused():
    with pytest.raises(ValueError, match=r"repeat each token.*class_dim=-1, shift_labels=True"):
        fit(LanguageModel(), make_loader(), MAP(), SAM(), CONFIG, likelihood=DenseCategorical(NUM_TOKENS, -1))


@pytest.mark.parametrize("kind", ["shifted", "decoder"])
def test_labels_that_are_shifted_already(kind):
    start = torch.zeros(len(TOKENS), 1, dtype=torch.int64)
    loader = make_loader(TOKENS[:, :-1], TOKENS[:, 1:])
    if kind == "decoder":
        loader = make_loader(TOKENS, TOKENS, decoder_input_ids=torch.cat([start, TOKENS[:, :-1]], 1))
    fitted = fit(LanguageModel(), loader, MAP(), SAM(rho=0.01), CONFIG.with_options(epochs=1))
    assert fitted.likelihood == DenseCategorical(NUM_TOKENS, class_dim=-1)
    likelihood = DenseCategorical(NUM_TOKENS, class_dim=-1, shift_labels=True)
    with pytest.raises(ValueError, match="shifted already"):
        fit(LanguageModel(), loader, MAP(), SAM(), CONFIG, likelihood=likelihood)


def test_other_labels_and_networks_that_see_later_tokens():
    tags = (TOKENS + 1) % NUM_TOKENS
    one_epoch = CONFIG.with_options(epochs=1)
    assert not fit(LanguageModel(), make_loader(labels=tags), MAP(), SAM(), one_epoch).likelihood.shift_labels
    with pytest.warns(DataWarning, match="Mask the tokens"):
        fitted = fit(LanguageModel(is_causal=False), make_loader(), MAP(), SAM(), one_epoch)
    assert not fitted.likelihood.shift_labels


def test_labels_that_tell_nothing_are_not_refused():
    def make_network():
        raise AssertionError

    constant = torch.ones_like(TOKENS)
    for likelihood in (DenseCategorical(NUM_TOKENS, -1), DenseCategorical(NUM_TOKENS, -1, shift_labels=True)):
        assert not check_label_shift(likelihood, {"input_ids": constant}, constant, make_network)
        assert not check_label_shift(likelihood, {"input_ids": TOKENS}, constant * -100, make_network)


def test_artefact_and_draws(tmp_path):
    fitted = fit(LanguageModel(), make_loader(), SWAG(rank=2), SAM(rho=0.01), CONFIG)
    predictive = fitted.predict({"input_ids": TOKENS}, 3)
    loaded = FittedPosterior.load(fitted.save(tmp_path), LanguageModel())
    assert loaded.likelihood == fitted.likelihood
    again = loaded.predict({"input_ids": TOKENS}, 3)
    assert torch.equal(again.log_probs[:, 1:], predictive.log_probs[:, 1:])
    assert fitted.check(make_loader()).findings


def test_calibration_and_checks_keep_no_more_probabilities_than_they_may(monkeypatch):
    fitted = fit(LanguageModel(), make_loader(), MAP(), SAM(rho=0.01), CONFIG.with_options(epochs=3))
    everything = calibrate(fitted, make_loader()).calibration
    assert everything == calibrate(fitted, {"input_ids": TOKENS}, TOKENS).calibration
    assert everything.num_examples == 60
    sizes = []
    select = position_stream.CategoricalPredictive.concatenate.__func__

    def record(cls, parts):
        sizes.append(sum(len(part.log_probs) for part in parts))
        return select(cls, parts)

    monkeypatch.setattr(position_stream.CategoricalPredictive, "concatenate", classmethod(record))
    monkeypatch.setattr(position_stream, "MAX_PREDICTED_VALUES", 100 * NUM_TOKENS)
    sampled = calibrate(fitted, make_loader()).calibration
    assert 30 < sizes[0] <= 100  # of 360 tokens
    assert sampled.num_examples == 60
    assert math.log(sampled.weights[0] / everything.weights[0]) == pytest.approx(0, abs=0.3)
    batches = list(position_stream.FirstBatches(make_loader(), NUM_TOKENS))
    assert len(batches) == 1
    inputs, targets = position_stream.limit_examples(fitted, {"input_ids": TOKENS}, TOKENS)
    assert len(targets) == len(inputs["input_ids"]) == 14
    assert torch.equal(inputs["input_ids"], targets)
    report = fitted.check(make_loader())
    assert report.findings


def test_positions_of_all_batches_are_sampled_with_equal_probability(monkeypatch):
    fitted = fit(LanguageModel(), make_loader(), MAP(), SAM(rho=0.01), CONFIG.with_options(epochs=1))
    monkeypatch.setattr(position_stream, "MAX_PREDICTED_VALUES", 2500 * NUM_TOKENS)
    monkeypatch.setattr(prediction_inputs, "MAX_CHUNK_BYTES", 1)  # a chunk is a batch
    targets = torch.arange(6).repeat_interleave(100)[:, None].expand(-1, LENGTH)  # the number of the batch
    _, labels, num_examples = position_stream.sample_positions(
        fitted, {"input_ids": TOKENS.repeat(10, 1)}, targets, 1, batch_size=100
    )
    counts = labels.bincount(minlength=6)
    assert num_examples == 600
    assert counts.sum() <= 2500  # of 3,600: half of the 600 of each batch, also of those after the limit was reached
    assert ((counts - 300).abs() < 75).all()
