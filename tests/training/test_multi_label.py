"""Training with several labels of each example: Laplace in closed form, vectorized members, missing labels."""

import pytest
import torch
from torch import nn

from flatbayes import MAP, SAM, SWAG, TFB, Bernoulli, Custom, Ensemble, Laplace, Plain, TrainingConfig, evaluate, fit
from flatbayes.core.randomness import preserve_rng
from flatbayes.training import DistributionConfig

NUM_LABELS = 5


def make_examples(count=120, seed=0, missing=0.2, unlabelled=10):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    logits = 2 * inputs @ torch.randn(4, NUM_LABELS, generator=torch.Generator().manual_seed(9))
    labels = (logits.sigmoid() > torch.rand(logits.shape, generator=generator)).long()
    labels[torch.rand(labels.shape, generator=generator) < missing] = -100
    labels[:unlabelled] = -100
    return inputs, labels


def make_network(hidden=6):
    with preserve_rng(None):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, NUM_LABELS))


def test_laplace_has_the_curvature_of_independent_labels():
    """The GGN of a last layer is the sum over known labels of p (1 - p) h hᵀ, one block for each label."""
    inputs, labels = make_examples()
    config = TrainingConfig(epochs=3, batch_size=16)
    full, diagonal = (
        fit(
            make_network(), (inputs, labels), Laplace(structure=structure, prior_precision=1.0), config=config, seed=0
        )
        for structure in ("last_layer", "diag")
    )
    network, rows = full.states[0].model, (labels >= 0).any(1)
    features = network[:2](full.transform(inputs[rows])).detach()
    probs = network[2](features).sigmoid().detach()
    weights = (probs * (1 - probs) * (labels[rows] >= 0)).double()
    extended = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    blocks = torch.einsum("ni,nk,nj->kij", extended, weights, extended)
    scale, size = full.states[0].statistics["scale"].double(), features.shape[1]
    computed = (scale @ scale.T).inverse() - torch.eye(len(scale))
    for k, block in enumerate(blocks):
        indices = [*range(k * size, (k + 1) * size), NUM_LABELS * size + k]  # the weights of a label, and its bias
        torch.testing.assert_close(computed[indices][:, indices], block, rtol=1e-3, atol=1e-3)
        computed[[[i] for i in indices], indices] = 0
    assert computed.abs().max() < 1e-3  # labels are independent
    expected = torch.cat([blocks[:, range(size), range(size)].flatten(), blocks[:, size, size]])
    last = diagonal.states[0].statistics["eigenvalues"].double()[-len(expected) :]
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-3)
    assert full.states[0].num_data == int(rows.sum())


@pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.05)], ids=["plain", "sam"])
def test_vectorized_members_are_those_of_one_by_one(flatness):
    predictions = []
    for members in ("vectorized", "one_by_one"):
        distribution = DistributionConfig(members=members, accelerator="cpu")
        config = TrainingConfig(epochs=4, batch_size=16, distribution=distribution)
        posterior = Ensemble(MAP(), 3)
        fitted = fit(make_network, make_examples(), posterior, flatness, config=config, seed=0)
        predictions.append(fitted.predict(make_examples(seed=1)[0]).log_probs)
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-5)


def test_examples_without_a_known_label_are_left_out():
    inputs, labels = make_examples(unlabelled=30)
    config = TrainingConfig(epochs=3, batch_size=16)
    whole = fit(make_network(), (inputs, labels), SWAG(), config=config, seed=0, val=(inputs, labels))
    rest = fit(make_network(), (inputs[30:], labels[30:]), SWAG(), config=config, seed=0, val=(inputs, labels))
    known = (labels >= 0).any(1)
    assert whole.states[0].num_data == rest.states[0].num_data == int(known.sum())
    assert torch.equal(whole.predict(inputs).mean, rest.predict(inputs).mean)
    assert whole.info["training"]["history"]["val_nll"] == rest.info["training"]["history"]["val_nll"]
    assert evaluate(whole, inputs, labels).metrics == evaluate(whole, inputs[known], labels[known]).metrics


@pytest.mark.parametrize("ignore_index", [None, 7])
def test_a_likelihood_with_another_mark_of_unknown_labels_is_refused(ignore_index):
    inputs, labels = make_examples()
    bernoulli, config = Bernoulli(NUM_LABELS, ignore_index), TrainingConfig(epochs=1)
    for likelihood in (bernoulli, Custom(bernoulli.loss, bernoulli)):
        with pytest.raises(ValueError, match=f"not known are -100 .* has ignore_index={ignore_index}: leave"):
            fit(make_network(), (inputs, labels), MAP(), likelihood=likelihood, config=config)
    fit(make_network(), (inputs, labels.clamp_min(0)), MAP(), likelihood=bernoulli, config=config)


def test_training_without_any_known_label_is_refused():
    inputs, labels = make_examples()
    with pytest.raises(ValueError, match="No label of the training examples is known"):
        fit(make_network(), (inputs, torch.full_like(labels, -100)), MAP(), likelihood=Bernoulli(NUM_LABELS))


def test_choices_after_a_training_are_those_of_labels():
    inputs, labels = make_examples(400)
    fitted = fit(make_network(), (inputs, labels), SWAG(), SAM(rho="auto"), seed=0)
    training = fitted.info["training"]
    assert training["best_epochs"]
    assert training["draw_options"]["scale"]["val_nll"]
    assert "labels" in fitted.summary()
    assert "targets" not in fitted.summary()


@pytest.mark.parametrize("criterion", ["pseudo_nll", "changed_classes"])
def test_criteria_of_classes_are_refused_before_the_training(criterion):
    with pytest.raises(ValueError, match="is about classes, and predictions are several labels. Use criterion='nll'"):
        fit(make_network(), make_examples(), TFB(std="auto", criterion=criterion), config=TrainingConfig(epochs=9999))
