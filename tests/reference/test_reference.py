"""References from data to predictions: a posterior in closed form, distances, files, and what does not match."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flatbayes import MLP, Arrays, Digits, ResNet
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.likelihoods import Bernoulli, Likelihood
from flatbayes.reference import Reference, ReferenceConfig, describe_network, measure_distances, sample_reference
from flatbayes.reference.diagnostics import measure_mixing
from support import make_multi_label_splits

NETWORK = partial(MLP, hidden=(4,))
SHORT = ReferenceConfig(num_chains=2, num_steps=40, num_draws=10, num_tuning_steps=30, num_descent_steps=20)


@dataclass(frozen=True)
class KnownNoise(Likelihood):
    """Normal targets with a known standard deviation."""

    std: float = 0.5
    num_outputs = 1

    def loss(self, outputs, targets):
        return ((outputs.squeeze(1) - targets) ** 2).mean() / (2 * self.std**2)

    def predictive(self, outputs, *, keep_members=False):
        raise NotImplementedError


@pytest.fixture(scope="module")
def splits():
    return Digits(train_size=60, test_size=50, val_size=50).load(0)


@pytest.fixture(scope="module")
def reference(splits):
    return sample_reference(NETWORK, splits, SHORT)


@pytest.mark.parametrize("options", [{}, {"sampler": "hmc", "num_leapfrog_steps": 5}])
def test_linear_regression_in_closed_form(options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 2, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(40, generator=generator) + 1
    splits = Arrays(inputs, targets, test_size=10, val_size=5).load(0)
    config = ReferenceConfig(
        prior_precision=2.0,
        temperature=0.7,
        num_chains=2,
        num_steps=1000,
        num_draws=200,
        num_tuning_steps=300,
        num_descent_steps=100,
        **options,
    )
    network = partial(nn.Linear, 2, 1)
    sampled = sample_reference(network, splits, config, likelihood=KnownNoise(), split="test")
    train, test = splits.train.input_tensor, splits.test.input_tensor
    mean, std = train.mean(0), train.std(0, correction=0)
    design, queries = (torch.cat([(x - mean) / std, torch.ones(len(x), 1)], 1).double() for x in (train, test))
    factor = 1 / (0.7 * 0.25)
    precision = factor * design.T @ design + 2.0 * torch.eye(3, dtype=torch.float64)
    weights = torch.linalg.solve(precision, factor * design.T @ splits.train.targets.double())
    variances = (queries * torch.linalg.solve(precision, queries.T).T).sum(1)
    outputs = sampled.outputs.flatten(0, 1).squeeze(2).double()
    assert torch.allclose(outputs.mean(0), queries @ weights, atol=0.05)
    assert torch.allclose(outputs.var(0) / variances, torch.ones(10, dtype=torch.float64), atol=0.25)
    assert sampled.diagnostics.r_hat_max < 1.1
    assert (sampled.num_weights, sampled.num_data) == (3, 25)


def test_a_reference_is_reproducible_and_differs_between_seeds(splits, reference):
    assert torch.equal(sample_reference(NETWORK, splits, SHORT).outputs, reference.outputs)
    assert not torch.equal(sample_reference(NETWORK, splits, SHORT, seed=1).outputs, reference.outputs)
    assert reference.outputs.shape == (2, 10, 50, 10)
    assert not torch.equal(reference.outputs[0], reference.outputs[1])


def test_descriptions_and_diagnostics(splits, reference):
    flat = sample_reference(NETWORK, splits, replace(SHORT, rho=0.1), split="val")
    assert (repr(reference), repr(flat)) == (
        "<Reference: plain, 2 chains of 10 draws, 50 test examples>",
        "<Reference: rho 0.1, 2 chains of 10 draws, 50 val examples>",
    )
    assert 0 < flat.diagnostics.ascent_residual < 1
    assert reference.diagnostics.ascent_residual is None
    assert flat.diagnostics.num_gradients == 4 * reference.diagnostics.num_gradients
    text = reference.summary()
    for words in ("prior precision 1", "mclmc, 2 chains", "R-hat", "energy variance", "two halves"):
        assert words in text
    assert "acceptance" in sample_reference(NETWORK, splits, replace(SHORT, sampler="hmc", num_steps=200)).summary()


def test_distances(reference):
    predictive = reference.predictive
    assert reference.measure(predictive) == {"agreement": 1.0, "tv": 0.0}
    noise = reference.measure_noise()
    assert 0 < noise["agreement"] <= 1 > noise["tv"] > 0
    one_chain = replace(reference, outputs=reference.outputs[:1])
    assert 0 < one_chain.measure_noise()["tv"] < 1
    with pytest.raises(TypeError, match="both must be predictions of classes"):
        measure_distances(predictive, torch.zeros(3))


def test_several_labels():
    splits = make_multi_label_splits((60, 20, 20))
    reference = sample_reference(NETWORK, splits, SHORT)
    predictive = reference.predictive
    assert predictive.mean.shape == (20, 4)
    assert reference.measure(predictive) == {"agreement": 1.0, "tv": 0.0}
    halves = [Bernoulli(4).predictive(half.flatten(0, 1)) for half in reference.outputs.chunk(2)]
    first, second = (half.mean for half in halves)
    assert reference.measure_noise() == {
        "agreement": pytest.approx(float(((first > 0.5) == (second > 0.5)).double().mean())),
        "tv": pytest.approx(float((first - second).abs().mean())),
    }


def test_file(tmp_path, reference):
    path = reference.save(tmp_path / "reference.safetensors")
    loaded = Reference.load(path)
    assert torch.equal(loaded.outputs, reference.outputs)
    assert loaded.describe() == json.loads(json.dumps(reference.describe()))
    assert loaded.config == reference.config
    assert loaded.likelihood == reference.likelihood
    assert loaded.explain_mismatch(reference.model, reference.fingerprint, "test") is None


def test_files_that_are_no_reference(tmp_path, reference):
    with pytest.raises(FileNotFoundError, match="flatbayes reference"):
        Reference.load(tmp_path / "missing")
    other = tmp_path / "other.safetensors"
    save_file({"outputs": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="no reference of flatbayes"):
        Reference.load(other)
    other.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no reference of flatbayes"):
        Reference.load(other)
    text = json.dumps(reference.describe() | {"schema": 99})
    save_file({"outputs": reference.outputs}, other, metadata={"flatbayes_reference": text})
    with pytest.raises(ValueError, match="upgrade flatbayes"):
        Reference.load(other)
    likelihood = {"class_path": "os.getcwd", "init_args": {}}
    text = json.dumps(reference.describe() | {"likelihood": likelihood})
    save_file({"outputs": reference.outputs}, other, metadata={"flatbayes_reference": text})
    with pytest.raises(ValueError, match="os"):
        Reference.load(other)


def test_reasons_of_a_mismatch(splits, reference):
    model, fingerprint = describe_network(NETWORK), compute_fingerprint(splits)
    assert reference.explain_mismatch(model, fingerprint, "test") is None
    assert "the val split" in reference.explain_mismatch(model, fingerprint, "val")
    other_data = compute_fingerprint(Digits(train_size=60, test_size=50, val_size=50).load(1))
    assert "train has other values" in reference.explain_mismatch(model, other_data, "test")
    other_model = describe_network(partial(MLP, hidden=(5,)))
    assert "another network" in reference.explain_mismatch(other_model, fingerprint, "test")
    instances = [describe_network(NETWORK(input_shape=(1, 8, 8), num_classes=10)) for _ in range(2)]
    assert instances[0] != instances[1]


def test_networks_that_are_refused(splits):
    with pytest.raises(ValueError, match="GroupNorm or LayerNorm"):
        sample_reference(ResNet, splits, SHORT)
    with pytest.raises(ValueError, match="trainable weights"):
        sample_reference(partial(MLP, hidden=(15_000,)), splits, SHORT)
    with pytest.raises(ValueError, match="split must be"):
        sample_reference(NETWORK, splits, SHORT, split="all")


def test_problems(reference):
    diagnostics = replace(reference.diagnostics, r_hat_max=1.02, ascent_residual=0.1)
    assert diagnostics.list_problems() == []
    assert "problem" not in replace(reference, diagnostics=diagnostics).summary()
    bad = replace(diagnostics, r_hat_max=1.3, ascent_residual=0.5)
    mixing, ascent = bad.list_problems()
    assert "largest R-hat 1.3" in mixing
    assert "residual 0.5" in ascent
    assert "raise num_steps" in replace(reference, diagnostics=bad).summary()
    (constant,) = replace(diagnostics, r_hat_max=None, ascent_residual=None).list_problems()
    assert constant.startswith("all its draws predict the same")
    assert "rho" in mixing
    assert "rho" not in constant  # a plain reference has no radius


def test_mixing_of_chains_that_disagree():
    chains = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    mixed = measure_mixing(chains)
    assert mixed["r_hat_max"] < 1.05
    assert mixed["ess_min"] > 200
    chains[1, :, 0] += 5
    apart = measure_mixing(chains)
    assert apart["r_hat_max"] > 1.5
    assert apart["ess_min"] < 20
    assert measure_mixing(torch.zeros(2, 8, 1))["r_hat_max"] is None


def build_in_half_precision(input_shape, num_classes):
    torch.manual_seed(0)
    return MLP(input_shape, num_classes, hidden=(4,)).bfloat16()


def build_in_single_precision(input_shape, num_classes):
    return build_in_half_precision(input_shape, num_classes).float()


def test_a_network_in_half_precision_is_sampled_in_single_precision(splits):
    references = [sample_reference(m, splits, SHORT) for m in (build_in_half_precision, build_in_single_precision)]
    assert torch.equal(references[0].outputs, references[1].outputs)
