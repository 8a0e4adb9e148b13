"""Noisy activations of every type of layer against the exact moments that random weights give them (O15)."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from flatbayes.core.gaussians import invert_softplus
from flatbayes.posteriors.variational_layers import (
    VARIATIONAL_TYPES,
    LayerNoise,
    SoftplusScale,
    draw_signs,
    flipout_activations,
    local_activations,
    reset_zeroed_gradients,
)

LAYERS = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear_no_bias": (nn.Linear(5, 3, bias=False), (4, 5)),
    "linear_sequence": (nn.Linear(4, 3), (3, 2, 4)),
    "linear_one_example": (nn.Linear(5, 3), (5,)),
    "conv1d": (nn.Conv1d(2, 3, 3), (3, 2, 6)),
    "conv1d_reflect": (nn.Conv1d(2, 2, 3, padding=2, padding_mode="reflect"), (3, 2, 5)),
    "conv2d": (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 4)),
    "conv2d_one_example": (nn.Conv2d(2, 3, 3), (2, 4, 4)),
    "conv2d_no_bias_same": (nn.Conv2d(1, 2, (1, 3), padding="same", bias=False), (2, 1, 3, 4)),
    "conv2d_grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 4, 4)),
    "conv2d_depthwise_strided": (nn.Conv2d(3, 3, 3, stride=2, groups=3, padding=1), (2, 3, 5, 5)),
    "conv2d_dilated_circular": (nn.Conv2d(1, 2, 2, dilation=2, padding=1, padding_mode="circular"), (2, 1, 4, 4)),
    "conv3d": (nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=1), (2, 1, 2, 3, 2)),
}
ESTIMATORS = {"local": local_activations, "flipout": flipout_activations}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def noisy_layer(name, estimator, std=None):
    """A layer with noise of a different size at each weight (or everywhere the same), inputs, and the plain layer."""
    generator = torch.Generator().manual_seed(2)
    plain, shape = LAYERS[name]
    plain = copy.deepcopy(plain).double()
    with torch.no_grad():
        for param in plain.parameters():
            param.copy_(torch.randn(param.shape, generator=generator, dtype=param.dtype))
    layer = copy.deepcopy(plain)
    layer.__class__ = VARIATIONAL_TYPES[type(plain)]
    raws = [
        None
        if p is None
        else torch.rand(p.shape, generator=generator, dtype=p.dtype) - 0.5
        if std is None
        else torch.full_like(p, invert_softplus(std)).detach()
        for p in (plain.weight, plain.bias)
    ]
    layer.noise = LayerNoise(
        estimator, *(None if raw is None else SoftplusScale.from_raws([raw], "local")[0] for raw in raws)
    )
    return layer, torch.randn(shape, generator=generator, dtype=torch.float64), plain


def exact_variance(layer, inputs, plain):
    """Activations are linear in the weights, so by the Jacobian in them: no square of inputs anywhere."""
    params = {name: param.detach() for name, param in plain.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(plain, p, (inputs,)))(params)
    total = 0
    for name, scale in (("weight", layer.noise.weight), ("bias", layer.noise.bias)):
        if scale is not None:
            total = total + (jacobian[name].square() * F.softplus(scale.raw).square()).flatten(inputs.dim()).sum(-1)
    return total


def samples(layer, inputs, count):
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.stack([layer(inputs) for _ in range(count)])


@each_estimator
@each_layer
def test_without_std_it_is_the_deterministic_layer(name, estimator):
    layer, inputs, plain = noisy_layer(name, estimator, std=1e-8)
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0, atol=1e-6)
    assert not torch.equal(layer(inputs), plain(inputs))


@each_estimator
@each_layer
def test_activations_have_the_moments_of_random_weights(name, estimator):
    count = 1200
    layer, inputs, plain = noisy_layer(name, estimator)
    activations, variance = samples(layer, inputs, count), exact_variance(layer, inputs, plain)
    error = (activations.mean(0) - plain(inputs)) / (variance / count).sqrt()
    assert error.abs().max() < 5
    # both are Gaussian: the variance of their variance is 2 variance² / count
    error = (activations.var(0) / variance - 1) / math.sqrt(2 / count)
    assert error.abs().max() < 5


@each_estimator
@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d_grouped"])
def test_examples_are_uncorrelated(name, estimator):
    count = 1200
    layer, inputs, _ = noisy_layer(name, estimator)
    inputs = inputs[:1].expand(2, *inputs.shape[1:])  # twice the same: with shared weights, the correlation is 1
    activations = samples(layer, inputs, count)
    activations = (activations - activations.mean(0)) / activations.std(0)
    correlation = (activations[:, 0] * activations[:, 1]).mean(0)
    assert correlation.abs().max() < 5 / math.sqrt(count)


def test_positions_of_a_convolution_share_weights_under_flipout_only():
    count, correlations = 1200, {}
    for estimator in ESTIMATORS:
        layer, inputs, _ = noisy_layer("conv1d", estimator)
        out = samples(layer, torch.ones_like(inputs), count)
        correlations[estimator] = out[:, 0, 0].T.corrcoef()[0, 1].item()  # neighbours that see the same inputs
    assert abs(correlations["local"]) < 5 / math.sqrt(count)
    assert correlations["flipout"] == pytest.approx(1, abs=1e-9)


def test_local_noise_has_no_covariance_between_examples_and_weights_have():
    """O15: mean -.1 and variance .2 either way; covariance -.15 with shared weights, 0 with local noise."""
    count = 20_000
    mean, std = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([[0.4, 0.1]], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    torch.manual_seed(0)
    batches = x.repeat(count, 1)
    correlations = {
        "local": local_activations(F.linear, batches, mean, None, std.square(), None).view(count, 2),
        "shared": (mean + std * torch.randn(count, 2, dtype=torch.float64)) @ x.T,
    }
    for kind, outputs in correlations.items():
        covariance, error = outputs.T.cov(), 5 / math.sqrt(count)
        assert outputs[:, 0].mean().item() == pytest.approx(-0.1, abs=error * 0.2**0.5)
        assert covariance[0, 0].item() == pytest.approx(0.2, abs=error * 0.2 * 2**0.5)
        exact = {"local": 0.0, "shared": -0.15}[kind]
        assert covariance[0, 1].item() == pytest.approx(exact, abs=error * (exact**2 + 0.2 * 0.1625) ** 0.5)


@pytest.mark.parametrize("activations", ESTIMATORS.values(), ids=ESTIMATORS)
def test_gradients_are_unbiased(activations):
    """Half the squared error of w x: d/dmean = -E x (y - mean x), d/dstd = std E x²."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    mean = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    std = torch.tensor([[0.3, 0.6, 1.0]], dtype=torch.float64)

    def gradients(_):
        def loss(mean, std):
            width = std.square() if activations is local_activations else std
            return (activations(F.linear, x, mean, None, width, None) - y).square().mean() / 2

        return torch.cat(torch.func.grad(loss, argnums=(0, 1))(mean, std), 1)

    sampled_gradients = vmap(gradients, randomness="different")(torch.arange(20_000)).squeeze(1)
    residual = x @ mean.T - y
    exact = torch.cat([(residual * x).mean(0), std[0] * x.square().mean(0)])
    assert (
        (sampled_gradients.mean(0) - exact).abs() < 5 * sampled_gradients.std(0) / math.sqrt(len(sampled_gradients))
    ).all()


@each_estimator
@pytest.mark.parametrize("deterministic", ["weight", "bias"])
def test_a_parameter_without_std_is_deterministic(deterministic, estimator):
    layer, inputs, plain = noisy_layer("linear", estimator)
    weight, bias = layer.noise.weight, layer.noise.bias
    layer.noise = LayerNoise(estimator, *((None, bias) if deterministic == "weight" else (weight, None)))
    variance = samples(layer, inputs, 1200).var(0) / exact_variance(layer, inputs, plain)
    assert (variance - 1).abs().max() < 5 * math.sqrt(2 / 1200)


@each_estimator
def test_inputs_without_variance_have_finite_gradients(estimator):
    layer, inputs, _ = noisy_layer("conv2d", estimator)
    layer.noise = LayerNoise(estimator, layer.noise.weight, None)
    inputs = torch.zeros_like(inputs).requires_grad_()
    layer(inputs).sum().backward()
    for tensor in (inputs, layer.weight, layer.noise.weight.raw):
        assert tensor.grad.isfinite().all()


@each_estimator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_variance_is_in_full_precision(dtype, estimator):
    layer, inputs, _ = noisy_layer("linear", estimator, std=1e-5)  # its square is 0 in half precision
    layer, inputs = layer.float(), inputs.float() * 1e4  # whose square is infinite in half precision
    nn.init.zeros_(layer.weight)
    layer.noise = LayerNoise(estimator, SoftplusScale.from_raws([layer.noise.weight.raw.float()], "local")[0], None)
    with torch.autocast("cpu", dtype=dtype):
        noise = layer(inputs) - layer.bias
        assert layer(inputs).dtype == dtype
        assert noise.any()
    noise.square().mean().mul(0.01).backward()
    for grad in (layer.noise.weight.raw.grad, layer.weight.grad):
        assert grad.isfinite().all()
        assert grad.any()


@each_estimator
def test_noise_requires_training_mode(estimator):
    layer, inputs, plain = noisy_layer("linear", estimator)
    assert not torch.equal(layer(inputs), plain(inputs))
    before = torch.get_rng_state()
    assert torch.equal(layer.eval()(inputs), plain(inputs))
    layer.noise = None
    assert torch.equal(layer.train()(inputs), plain(inputs))
    assert torch.equal(torch.get_rng_state(), before)


def test_signs_are_per_example_and_feature():
    torch.manual_seed(0)
    for shape, axis, expected in [
        ((5, 3), -1, (5, 3)),
        ((5, 7, 3), -1, (5, 1, 3)),
        ((3,), -1, (3,)),
        ((5, 3, 8, 8), -3, (5, 3, 1, 1)),
        ((3, 8, 8), -3, (3, 1, 1)),
    ]:
        signs = draw_signs(torch.zeros(shape), axis)
        assert signs.shape == expected
        assert signs.dtype == torch.float32
        assert (signs.abs() == 1).all()
    signs = draw_signs(torch.zeros(100, 100), -1)
    assert signs.mean().abs() < 0.05


def test_a_variational_layer_is_its_deterministic_type_with_noise():
    for plain, (layer, shape) in zip(
        VARIATIONAL_TYPES, [LAYERS[k] for k in ("linear", "conv1d", "conv2d", "conv3d")], strict=True
    ):
        assert type(layer) is plain
        twin = copy.deepcopy(layer)
        twin.__class__ = VARIATIONAL_TYPES[plain]
        x = torch.randn(shape)
        assert isinstance(twin, plain)
        assert torch.equal(twin(x), layer(x))
        assert twin.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize(
    ("grads", "kept"),
    [
        ((None, None), None),
        ((torch.zeros(2), None), 0.0),
        ((torch.zeros(2), torch.zeros(3)), 0.0),
        ((torch.tensor([0.0, 1e-30]), torch.zeros(3)), 5.0),
        ((torch.tensor([0.0, math.nan]), None), 5.0),
    ],
)
@pytest.mark.parametrize("value", [5.0, math.inf])
def test_gradients_of_stds_are_zeroed_with_those_of_all_means(grads, kept, value):
    params, raw = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))], torch.ones(2)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    raw.grad, untouched = torch.full((2,), value), torch.ones(2)
    reset_zeroed_gradients(params, [raw, untouched])
    assert untouched.grad is None
    if kept is None:
        assert raw.grad is None
    else:
        assert raw.grad.tolist() == [value if kept else 0.0] * 2


@pytest.mark.parametrize("frozen", [False, True])
def test_passes_add_the_gradient_of_the_softplus(frozen):
    torch.manual_seed(0)
    raw, direction = torch.randn(2, 3, 4, dtype=torch.float64)
    scale, param = (
        SoftplusScale.from_raws([raw], "local")[0],
        nn.Parameter(torch.zeros_like(raw), requires_grad=not frozen),
    )
    leaf = raw.clone().requires_grad_()
    std = F.softplus(leaf)
    assert torch.equal(scale.make_std_leaf(param), std)
    assert torch.equal(scale.make_variance_leaf(param), std.square())
    if frozen:
        assert not scale.make_std_leaf(param).requires_grad
        assert not scale.make_variance_leaf(param).requires_grad
        return
    expected = torch.autograd.grad((std * direction).sum() + (std.square() * direction.exp()).sum(), leaf)[0]
    (scale.make_std_leaf(param) * direction).sum().backward()
    (scale.make_variance_leaf(param) * direction.exp()).sum().backward()
    torch.testing.assert_close(raw.grad, expected)
    assert torch.equal(scale.std, std)
    assert not raw.requires_grad
