"""The Laplace approximation against closed forms: Bayesian linear regression, dense precisions, exact evidence."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.tensor_lists import flatten
from flatbayes.posteriors import Laplace
from flatbayes.posteriors.curvature import maximize_evidence
from flatbayes.posteriors.curvature_structures import make_curvature
from flatbayes.posteriors.ggn import ExampleVjps, ggn_diagonal
from flatbayes.posteriors.kfac import KroneckerFactors, add_factors, find_kfac_layers, get_matrix_shape
from flatbayes.posteriors.last_layer import factorize_covariance
from flatbayes.posteriors.linearised import LinearisedNetwork
from support import compute_ggn

NOISE, PRIOR, NUM_DATA, FEATURES = 0.3, 1.7, 40, 3


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gaussian_loss(outputs, targets):
    return (outputs - targets).square().sum() / (2 * NOISE * len(outputs))


def descent(params):
    return torch.optim.SGD(params, lr=0.05)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def regression(num_data=NUM_DATA):
    torch.manual_seed(5)
    x = torch.randn(num_data, FEATURES) * torch.tensor([1.0, 0.1, 3.0])
    return x, x[:, :1] - 2 * x[:, 1:2] + 0.5 + math.sqrt(NOISE) * torch.randn(num_data, 1)


def exact_regression(x, y, prior, temperature=1.0):
    """Mean and covariance of the posterior of weights and bias."""
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    precision = design.T @ design / (NOISE * temperature) + prior * torch.eye(design.shape[1])
    mean = torch.linalg.solve(precision, design.T @ y / (NOISE * temperature))
    return mean[:, 0], precision.inverse()


def at(weights):
    model = nn.Linear(FEATURES, 1)
    with torch.no_grad():
        model.weight.copy_(weights[None, :-1])
        model.bias.copy_(weights[-1:])
    return model


def covariance(posterior, state):
    """Of all offsets, from those of each coordinate of the noise."""
    statistics, curvature = state.statistics, make_curvature(posterior.structure, state.model)
    axes = torch.eye(sum(param.numel() for param in curvature.params.values()))
    columns = [flatten(curvature.compute_offsets(statistics, axis, posterior.temperature)) for axis in axes]
    return torch.stack(columns, 1) @ torch.stack(columns)


def network():
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    )
    net(torch.randn(20, 1, 4, 4))
    return net


def examples(size=12):
    return torch.randn(size, 1, 4, 4, generator=generator(8)), torch.arange(size) % 3


def finished(posterior, num_data=12, batch_size=12):
    model = network()
    state = posterior.init(model, descent, num_data)
    x, y = examples()
    posterior.finalize(state, zip(x.split(batch_size), y.split(batch_size), strict=True), F.cross_entropy)
    return state


# --- Bayesian linear regression


@pytest.mark.parametrize("structure", ["last_layer", "last_layer_kron", "kron"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_linear_regression_is_exact(structure, temperature):
    x, y = regression()
    mean, cov = exact_regression(x, y, PRIOR, temperature)
    posterior = Laplace(structure, "sampled", prior_precision=PRIOR, temperature=temperature)
    model = at(mean)
    state = posterior.init(model, descent, NUM_DATA)

    def closure():
        model.zero_grad()
        loss = gaussian_loss(model(x), y)
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)  # the gradient of likelihood and prior vanishes at the exact mean
    posterior.finalize(state, [(x, y)], gaussian_loss)
    torch.testing.assert_close(state.statistics["mean"], mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(posterior, state), cov, rtol=1e-10, atol=1e-12)


def test_diagonal_of_a_linear_regression():
    x, y = regression()
    posterior = Laplace("diag", prior_precision=PRIOR, temperature=1.0)
    state = posterior.init(at(torch.ones(FEATURES + 1)), None, NUM_DATA)
    posterior.finalize(state, [(x, y)], gaussian_loss)
    _, cov = exact_regression(x, y, PRIOR)
    torch.testing.assert_close(covariance(posterior, state), cov.inverse().diagonal().reciprocal().diag())


def test_variance_of_linearised_draws_is_that_of_the_predictive():
    x, y = regression()
    mean, cov = exact_regression(x, y, PRIOR)
    posterior = Laplace("last_layer", prior_precision=PRIOR, temperature=1.0)
    state = posterior.init(at(mean), None, NUM_DATA)
    posterior.finalize(state, [(x, y)], gaussian_loss)
    new, noise, outputs = torch.tensor([[5.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), generator(), []
    for _ in range(1000):
        with posterior.draw(state, noise) as drawn, torch.no_grad():
            outputs.append(drawn(new)[:, 0])
    design = torch.cat([new, torch.ones(2, 1)], 1)
    exact = (design @ cov * design).sum(1)
    stacked_outputs = torch.stack(outputs)
    assert (stacked_outputs.var(0) / exact).tolist() == pytest.approx([1, 1], abs=5 * math.sqrt(2 / 1000))
    assert ((stacked_outputs.mean(0) - design @ mean) / exact.sqrt()).tolist() == pytest.approx(
        [0, 0], abs=5 / math.sqrt(1000)
    )


def test_evidence_maximum_equals_grid_search_of_the_exact_evidence():
    x, y = regression()
    design = torch.cat([x, torch.ones(NUM_DATA, 1)], 1)
    grid = torch.logspace(-2, 2, 1001)

    def log_evidence(prior):
        cov = NOISE * torch.eye(NUM_DATA) + design @ design.T / prior
        return torch.distributions.MultivariateNormal(torch.zeros(NUM_DATA), cov).log_prob(y[:, 0])

    best = grid[torch.stack([log_evidence(prior) for prior in grid]).argmax()].item()
    prior = 1.0
    for _ in range(200):  # MacKay's: weights given the prior, then the prior given the weights
        posterior = Laplace("last_layer", tune="evidence", temperature=1.0)
        state = posterior.init(at(exact_regression(x, y, prior)[0]), None, NUM_DATA)
        posterior.finalize(state, [(x, y)], gaussian_loss)
        before, prior = prior, state.statistics["prior_precision"].item()
        if abs(before - prior) < 1e-9 * prior:
            break
    assert prior == pytest.approx(best, rel=5e-3)
    assert log_evidence(torch.tensor(prior)) >= log_evidence(torch.tensor(best))


# --- The prior that the evidence chooses


@pytest.mark.parametrize("curvature", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("squared_norm", [1e-6, 1.0, 1e6])
def test_evidence_with_one_weight_is_the_root_of_a_quadratic(curvature, squared_norm):
    precision = maximize_evidence(torch.tensor([curvature, 0.0]), squared_norm)
    product = curvature * squared_norm  # squared_norm δ² + product δ - curvature = 0
    exact = 2 * curvature / (product + math.sqrt(product**2 + 4 * squared_norm * curvature))
    assert precision == pytest.approx(exact, rel=1e-12)


def test_evidence_of_many_weights_is_larger_than_anywhere_near():
    values, squared_norm = torch.logspace(-8, 6, 500), 3.0

    def evidence(prior):
        return (len(values) * math.log(prior) - (values + prior).log().sum() - prior * squared_norm) / 2

    precision = maximize_evidence(values, squared_norm)
    assert evidence(precision) > evidence(precision * 1.001)
    assert evidence(precision) > evidence(precision / 1.001)
    assert precision == pytest.approx(float((values / (values + precision)).sum()) / squared_norm, rel=1e-12)


@pytest.mark.parametrize(("values", "squared_norm"), [([0.0, 0.0], 1.0), ([1.0, 0.0], 0.0), ([math.inf, 1.0], 1.0)])
def test_evidence_without_a_maximum(values, squared_norm):
    with pytest.raises(ValueError, match=r"no maximum: .* Set prior_precision, and tune='none'"):
        maximize_evidence(torch.tensor(values), squared_norm)


def test_evidence_counts_the_weights_that_have_a_distribution_and_the_temperature():
    state = finished(Laplace("last_layer", tune="evidence", temperature=0.1))
    last, model = state.model[6], network().eval()
    params = {name: param for name, param in model.named_parameters() if name[0] == "6"}
    values = torch.linalg.eigvalsh(compute_ggn(ExampleVjps(model, params), *examples(), F.cross_entropy)).clamp(min=0)
    squared_norm = (last.weight.square().sum() + last.bias.square().sum()).item()
    assert state.statistics["prior_precision"].item() == pytest.approx(
        maximize_evidence(values / 0.1, squared_norm), rel=1e-12
    )


# --- The Gaussian


def test_covariances_are_inverses_of_dense_precisions():
    x, y = examples()
    model = network().eval()
    everything, last = dict(model.named_parameters()), {n: p for n, p in model.named_parameters() if n[0] == "6"}
    full = {
        "diag": ggn_diagonal(ExampleVjps(model, everything), x, y, F.cross_entropy).diag(),
        "last_layer": compute_ggn(ExampleVjps(model, last), x, y, F.cross_entropy),
    }
    for structure, curvature in full.items():
        posterior = Laplace(structure, prior_precision=PRIOR, temperature=0.5)
        expected = (curvature / 0.5 + PRIOR * torch.eye(len(curvature))).inverse()
        torch.testing.assert_close(covariance(posterior, finished(posterior)), expected)


def test_the_covariance_of_an_indefinite_curvature_has_the_prior_in_its_negative_directions():
    """Rounding can make the sum with the prior indefinite, so that there is no Cholesky factor."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    curvature, precision = torch.tensor([4.0, 0.0, -1.0], dtype=torch.float64), torch.tensor(0.5)
    root = factorize_covariance(rotation * curvature @ rotation.T, precision)
    expected = rotation / torch.tensor([4.5, 0.5, 0.5], dtype=torch.float64) @ rotation.T
    torch.testing.assert_close(root @ root.T, expected, rtol=0, atol=1e-12)


def test_covariance_of_kronecker_factors_includes_the_prior_exactly():
    x, y = examples()
    model = network().eval()
    layers = find_kfac_layers(model)
    factors = {}
    for name, (rows, columns) in {name: get_matrix_shape(layer) for name, layer in layers.items()}.items():
        factors[name] = KroneckerFactors(torch.zeros(columns, columns), torch.zeros(rows, rows))
    add_factors(factors, layers, model, x, y, F.cross_entropy)
    posterior = Laplace("kron", prior_precision=PRIOR, temperature=0.5)
    dense_covariance = covariance(posterior, finished(posterior))
    start = 0
    for name, factor in factors.items():
        curvature = torch.kron(factor.output_factor, factor.input_factor) / factor.num_positions
        inverse = (curvature / 0.5 + PRIOR * torch.eye(len(curvature))).inverse()
        rows, columns = get_matrix_shape(layers[name])
        places = torch.arange(rows * columns).view(rows, columns)
        order = torch.cat([places[:, :-1].flatten(), places[:, -1]])  # weights, then biases
        stop = start + len(order)
        torch.testing.assert_close(dense_covariance[start:stop, start:stop], inverse[order][:, order])
        assert dense_covariance[start:stop, stop:].count_nonzero() == 0
        start = stop
    assert start == len(dense_covariance)


def test_kronecker_factors_of_the_last_layer_are_those_of_the_whole_network():
    (whole, all_layers), (last, only_last) = [
        (posterior, finished(posterior))
        for posterior in (Laplace(structure, prior_precision=PRIOR) for structure in ("kron", "last_layer_kron"))
    ]
    block = covariance(last, only_last)
    size = sum(param.numel() for param in only_last.model[6].parameters())
    assert len(block) == size
    torch.testing.assert_close(block, covariance(whole, all_layers)[-size:, -size:])


@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer", "last_layer_kron"])
def test_curvature_is_scaled_to_all_the_data_and_does_not_depend_on_batches(structure):
    def curvature(**options):
        posterior = Laplace(structure, prior_precision=PRIOR)
        inverse = covariance(posterior, finished(posterior, **options)).inverse()
        return inverse - PRIOR * torch.eye(len(inverse))

    torch.testing.assert_close(curvature(num_data=36), 3 * curvature(), rtol=1e-6, atol=1e-9)
    if "kron" not in structure:  # the product of sums is not a sum over batches
        torch.testing.assert_close(curvature(batch_size=5), curvature(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer", "last_layer_kron"])
def test_a_large_batch_is_split_into_chunks(structure):
    posterior = Laplace(structure, prior_precision=PRIOR)
    x, y = examples(150)
    first_state, second_state = (posterior.init(network(), None, 150) for _ in range(2))
    posterior.finalize(first_state, [(x, y)], F.cross_entropy)
    posterior.finalize(second_state, zip(x.split(50), y.split(50), strict=True), F.cross_entropy)
    key = "scale" if structure == "last_layer" else "eigenvalues"
    torch.testing.assert_close(first_state.statistics[key], second_state.statistics[key])


@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer", "last_layer_kron"])
def test_finalize_leaves_the_model_unchanged(structure):
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    posterior = Laplace(structure, prior_precision=PRIOR)
    state = posterior.init(model, None, 12)
    x, y = examples()
    posterior.finalize(state, [(x, y)], F.cross_entropy)
    again = {name: tensor.clone() for name, tensor in state.statistics.items()}
    with torch.no_grad():
        posterior.finalize(
            state, [(x.float(), y)], F.cross_entropy
        )  # data is often of lower precision than the model
    key = "scale" if structure == "last_layer" else "eigenvalues"
    torch.testing.assert_close(state.statistics[key], again[key], rtol=1e-4, atol=1e-4)
    with pytest.raises(ArithmeticError):
        posterior.finalize(state, [(x, y)], failing_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks and not module._backward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(not tensor.requires_grad for tensor in state.statistics.values())


def failing_loss(outputs, targets):
    raise ArithmeticError("on purpose")


# --- Draws


@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer", "last_layer_kron"])
def test_a_linearised_draw_is_the_derivative_along_its_offset(structure):
    posterior = Laplace(structure, prior_precision=PRIOR)
    state = finished(posterior)
    x, _ = examples()
    with posterior.draw(state, generator()) as drawn, torch.no_grad():
        assert isinstance(drawn, LinearisedNetwork)
        outputs, offsets = drawn(x), drawn.offsets
    model, step = state.model.eval(), 1e-5
    with torch.no_grad():
        centre, ends = model(x), []
        for sign in (1, -1):
            for name, offset in offsets.items():
                model.get_parameter(name).add_(sign * step * offset)
            ends.append(model(x))
            for name, offset in offsets.items():
                model.get_parameter(name).sub_(sign * step * offset)
    torch.testing.assert_close(outputs, centre + (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    assert (outputs - centre).abs().max() > 0.01


def test_where_the_network_is_linear_in_its_weights_both_predictives_agree():
    x, _ = examples()
    outputs = []
    for predictive in ("linearised", "sampled"):
        posterior = Laplace("last_layer", predictive, prior_precision=PRIOR)
        with posterior.draw(finished(posterior), generator()) as drawn, torch.no_grad():
            outputs.append(drawn(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_linearised_draws_approach_sampled_ones_as_the_gaussian_narrows(structure):
    x, _ = examples()
    errors = []
    for prior in (1e6, 1e8):
        outputs = []
        for predictive in ("linearised", "sampled"):
            posterior = Laplace(structure, predictive, prior_precision=prior)
            with posterior.draw(finished(posterior), generator()) as drawn, torch.no_grad():
                outputs.append(drawn(x))
        errors.append((outputs[0] - outputs[1]).abs().max().item())
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.2)  # of second order in the offset


def test_a_nested_sampled_draw_has_the_same_mean():
    posterior = Laplace("diag", "sampled", prior_precision=PRIOR)
    state = finished(posterior)
    with posterior.draw(state, generator(1)) as drawn:
        alone = drawn[0].weight.detach().clone()
    with posterior.draw(state, generator(2)), posterior.draw(state, generator(1)) as drawn:
        assert torch.equal(drawn[0].weight, alone)


def test_gradients_in_the_inputs_of_a_linearised_draw():
    posterior = Laplace("kron", prior_precision=PRIOR)
    state = finished(posterior)
    x = examples(2)[0].requires_grad_()
    with posterior.draw(state, generator()) as drawn:
        assert torch.autograd.gradcheck(drawn, (x,))
        with torch.inference_mode():
            assert not drawn(x).requires_grad


def test_layers_without_a_distribution_are_unchanged():
    moved_by_structure = {"kron": {"0", "4", "6"}, "diag": {"0", "1", "4", "6"}}
    for structure in ("kron", "last_layer", "last_layer_kron", "diag"):
        moved = moved_by_structure.get(structure, {"6"})
        posterior = Laplace(structure, "sampled", prior_precision=PRIOR)
        state = finished(posterior)
        before = {name: param.detach().clone() for name, param in state.model.named_parameters()}
        with posterior.draw(state, generator()) as drawn:
            inside = {n.split(".")[0] for n, p in drawn.named_parameters() if not torch.equal(p, before[n])}
        assert inside == moved


def test_frozen_parameters_have_no_distribution():
    model = network()
    model[4].bias.requires_grad_(False)
    model[6].weight.requires_grad_(False)
    x, y = examples()
    for structure in ("diag", "kron", "last_layer", "last_layer_kron"):
        posterior = Laplace(structure, prior_precision=PRIOR)
        state = posterior.init(model, None, 12)
        posterior.finalize(state, [(x, y)], F.cross_entropy)
        with posterior.draw(state, generator()) as drawn:
            assert not {"4.bias", "6.weight"} & drawn.offsets.keys()
            assert "6.bias" in drawn.offsets
            assert drawn(x).isfinite().all()


def test_draws_need_the_curvature_of_the_last_step():
    posterior = Laplace(prior_precision=PRIOR)
    state = posterior.init(network(), descent, 12)
    with (
        pytest.raises(RuntimeError, match=r"before a draw: call posterior\.finalize"),
        posterior.draw(state, generator()),
    ):
        pass
    posterior.finalize(state, [examples()], F.cross_entropy)
    with posterior.draw(state, generator()):
        pass

    def closure():
        loss = F.cross_entropy(state.model(examples()[0]), examples()[1])
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)
    with pytest.raises(RuntimeError, match="before a draw"), posterior.draw(state, generator()):
        pass


# --- The prior of training


def test_weight_decay_is_a_prior_and_a_prior_is_a_weight_decay():
    def prior(**options):
        return lambda params: torch.optim.SGD(params, lr=0.1, **options)

    state = Laplace(temperature=0.5).init(network(), prior(weight_decay=0.01), 50)
    precision = state.statistics["prior_precision"].item()
    assert precision == pytest.approx(50 * 0.01 / 0.5)
    model = network()
    with_precision = Laplace(temperature=0.5, prior_precision=precision)
    other = with_precision.init(model, prior(), 50)

    def no_data():
        for param in [*state.model.parameters(), *model.parameters()]:
            param.grad = torch.zeros_like(param)
        return torch.zeros(())

    Laplace(temperature=0.5).step(state, no_data)
    with_precision.step(other, no_data)
    for one, two in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_the_weight_decay_of_the_default_optimizer_is_the_prior():
    state = Laplace(temperature=1.0).init(network(), Laplace().default_optimizer, 100)
    assert state.statistics["prior_precision"].item() == pytest.approx(5e-4 * 100)
    posterior = Laplace(prior_precision=PRIOR)
    state = posterior.init(network(), posterior.default_optimizer, 100)
    assert state.statistics["prior_precision"].item() == PRIOR


def test_missing_and_duplicate_priors_are_refused():
    with pytest.raises(ValueError, match=r"one prior for all weights, .* weight_decay=0\.0\. .* tune='evidence'"):
        Laplace().init(network(), descent, 10)

    def grouped(params):
        first, *rest = params
        return torch.optim.SGD(
            [{"params": [first], "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}], lr=1
        )

    with pytest.raises(ValueError, match=r"weight_decay=0\.0 and 0\.1"):
        Laplace().init(network(), grouped, 10)
    assert Laplace(tune="evidence").init(network(), grouped, 10).statistics["prior_precision"] == 0
    with pytest.raises(ValueError, match="The prior is given twice"):
        Laplace(prior_precision=1.0).init(network(), lambda p: torch.optim.SGD(p, weight_decay=0.1), 10)
    with pytest.raises(ValueError, match=r"has no prior: .* Set prior_precision"):
        Laplace().finalize(Laplace().init(network(), None, 10), [examples()], F.cross_entropy)
    with pytest.raises(ValueError, match="training examples, and got none"):
        posterior = Laplace(prior_precision=1.0)
        posterior.finalize(posterior.init(network(), None, 10), [], F.cross_entropy)


# --- What makes no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "full"}, "structure must be diag or kron or last_layer or last_layer_kron, got 'full'"),
        ({"predictive": "probit"}, "predictive must be linearised or sampled"),
        ({"tune": "grid"}, "tune must be none or evidence"),
        ({"prior_precision": 0.0}, r"prior_precision must be positive and finite, got 0\.0"),
        ({"prior_precision": math.inf}, "prior_precision must be positive and finite"),
        ({"temperature": 0.0}, r"temperature must be positive and finite, got 0\.0"),
        ({"temperature": math.nan}, "temperature must be positive and finite"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    posterior = Laplace()
    for name, value in options.items():
        object.__setattr__(posterior, name, value)  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match=message):
        posterior.__post_init__()


def test_unsupported_models_are_refused():
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear with trainable weights"):
        Laplace("last_layer").init(nn.Conv1d(2, 2, 1), None, 10)
    with pytest.raises(ValueError, match=r"1 \(Embedding\) has trainable weights \(weight\)"):
        Laplace("kron").init(nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2)), None, 10)
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet\. Run the model on a batch first"):
        Laplace("diag").init(lazy, None, 10)


def test_a_decoupled_weight_decay_is_refused_as_prior():
    with pytest.raises(ValueError, match="AdamW is not the gradient of a Gaussian prior"):
        Laplace().init(network(), lambda params: torch.optim.AdamW(params, lr=1e-3), 50)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("structure", ["last_layer", "last_layer_kron", "diag", "kron"])
@pytest.mark.parametrize("make_layer", [lambda: nn.BatchNorm1d(4, track_running_stats=False), Centred])
def test_examples_that_change_the_outputs_of_others_are_refused_before_the_first_step(structure, make_layer):
    model = nn.Sequential(nn.Linear(3, 4), make_layer(), nn.Linear(4, 3))
    posterior, batch = Laplace(structure, prior_precision=1.0), (torch.randn(6, 3), torch.arange(6) % 3)
    state = posterior.init(model, None, 6)
    with pytest.raises(ValueError, match=r"for one example depend on the other examples of its batch.*GroupNorm"):
        posterior.check_model(state, [batch], F.cross_entropy)


class Unused(nn.Sequential):
    def forward(self, x):
        return self[0](x)


@pytest.mark.parametrize("structure", ["last_layer", "last_layer_kron", "diag", "kron"])
def test_no_examples_are_refused(structure):
    posterior = Laplace(structure, prior_precision=1.0)
    with pytest.raises(ValueError, match="on the training examples, and got none"):
        posterior.finalize(posterior.init(network(), None, 6), [], F.cross_entropy)


def test_a_last_layer_that_is_not_used_is_refused_by_name():
    posterior, model = Laplace("last_layer", prior_precision=1.0), Unused(nn.Linear(3, 3), nn.Linear(3, 3))
    batch = torch.randn(6, 3), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"outputs of Unused do not depend on 1\.weight, 1\.bias.*structure='diag'"):
        posterior.check_model(posterior.init(model, None, 6), [batch], F.cross_entropy)
