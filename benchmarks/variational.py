"""Time of noisy layers relative to the layers without noise, and of a variational step relative to its gradients.

The peer is bayesian-torch, if it is installed. Its reparameterised layers draw weights once per batch, which is less
work than `local` noise and makes gradients noisier.

The baseline of a step includes one pass over the parameters, which no variational step can avoid: random numbers,
mean + std noise, a copy of that into the model, and gradient times noise, in place on flat vectors.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from timing import Work, row, threads
from torch import nn
from torch.nn import functional as F

from flatbayes import LRT, SAM, SGVB, ConvNet, Plain
from flatbayes.core.gaussians import invert_softplus
from flatbayes.posteriors.variational_layers import VARIATIONAL_TYPES, LayerNoise, SoftplusScale

try:
    from bayesian_torch import layers as peer
except Exception:  # not installed, or its dependencies are broken
    peer = None


def rows(quick: bool) -> list[dict]:
    """A row per case and number of threads; small cases on one thread with `quick`."""
    results = []
    for count in (1,) if quick else (1, 2):
        with threads(count):
            for group, case, target, note, make in [*layer_cases(quick), *step_cases(quick)]:
                works = make()
                ours, baseline = works.pop("ours"), works.pop("baseline")
                rounds = 3 if quick else 15
                results.append(row(group, case, ours, baseline, rounds=rounds, peers=works, target=target, note=note))
    return results


# Layers


LAYERS = {
    "Linear 256-256, batch 64": (nn.Linear(256, 256), (64, 256)),
    "Conv2d 16-32, 3x3, 50 x 16x16": (nn.Conv2d(16, 32, 3, padding=1), (50, 16, 16, 16)),
    "Linear 1024-1024, batch 128": (nn.Linear(1024, 1024), (128, 1024)),
    "Conv2d 64-64, 3x3, 32 x 8x8": (nn.Conv2d(64, 64, 3, padding=1), (32, 64, 8, 8)),
}


def layer_cases(quick: bool):
    for estimator in ("local", "flipout"):
        for case, (layer, shape) in list(LAYERS.items())[: 2 if quick else None]:
            make = partial(layer_works, layer, shape, estimator)
            yield f"{estimator} layers", case, None, "in units of the layer without noise", make


def layer_works(layer: nn.Module, shape: tuple, estimator: str) -> dict[str, Work]:
    """Forward and backward pass of one layer, with a gradient of the inputs as in the middle of a network."""
    inputs = torch.randn(shape, requires_grad=True)
    works = {"baseline": make_pass(layer, inputs), "ours": make_pass(make_noisy_layer(layer, estimator), inputs)}
    if peer is not None:
        kind = {"local": "Reparameterization", "flipout": "Flipout"}[estimator]
        peer_layer = getattr(peer, type(layer).__name__ + kind)(*get_layer_arguments(layer))
        works["bayesian-torch"] = make_pass(partial(peer_layer, return_kl=False), inputs, peer_layer)
    return works


def make_noisy_layer(layer: nn.Module, estimator: str) -> nn.Module:
    noisy_layer = VARIATIONAL_TYPES[type(layer)](*get_layer_arguments(layer))
    raws = [nn.Parameter(torch.full_like(p, invert_softplus(0.01))) for p in (noisy_layer.weight, noisy_layer.bias)]
    noisy_layer.noise = LayerNoise(estimator, *SoftplusScale.from_raws(raws, estimator))
    return noisy_layer


def get_layer_arguments(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride, layer.padding


def make_pass(forward: Callable, inputs: torch.Tensor, module: nn.Module | None = None) -> Work:
    module = forward if module is None else module
    direction = torch.randn_like(forward(inputs))
    noise = getattr(module, "noise", None)
    scales = () if noise is None else (noise.weight, noise.bias)
    tensors = [inputs, *module.parameters(), *(scale.raw for scale in scales)]

    def work():
        for tensor in tensors:
            tensor.grad = None
        if scales:  # the softplus is part of the work, as in a step with one pass
            module.noise = LayerNoise(
                noise.estimator, *SoftplusScale.from_raws([scale.raw for scale in scales], noise.estimator)
            )
        forward(inputs).backward(direction)

    return work


# Steps


def step_cases(quick: bool):
    for case, make in list(MODELS.items())[: 2 if quick else None]:
        for posterior, flat in ((SGVB(), Plain()), (SGVB(), SAM()), (LRT(), Plain())):
            one_pass = isinstance(posterior, SGVB)
            gradients = "one plain gradient" if flat.gradients_per_step == 1 else "two plain gradients"
            note = f"in units of {gradients}, {'one pass over the parameters, ' if one_pass else ''}the optimizer"
            works = partial(step_works, posterior, flat, make, one_pass)
            name = f"{type(flat).__name__}, {case}"
            yield f"{type(posterior).__name__} steps", name, 1.0 if one_pass else None, note, works


def step_works(posterior, flat, make: Callable, one_pass: bool) -> dict[str, Work]:
    """A step, and its baseline: gradients, the pass, and an optimizer over twice the parameters."""
    return {
        "baseline": make_baseline_step(*make(), int(flat.gradients_per_step), one_pass),
        "ours": make_step(posterior, flat, *make()),
    }


def make_mlp(batch: int, *sizes: int):
    layers = [piece for pair in pairwise(sizes) for piece in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(batch, sizes[0])


MODELS = {
    "MLP 8-50-1, batch 32": partial(make_mlp, 32, 8, 50, 1),
    "MLP 64-256-256-10, batch 64": partial(make_mlp, 64, 64, 256, 256, 10),
    "ConvNet 3x32x32, batch 50": lambda: (ConvNet((3, 32, 32), 10), torch.randn(50, 3, 32, 32)),
    "MLP 784-1024-1024-10, batch 128": partial(make_mlp, 128, 784, 1024, 1024, 10),
}


def make_closure(model: nn.Module, inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    outputs = model(inputs).shape[1]
    targets = torch.zeros(len(inputs), 1) if outputs == 1 else torch.arange(len(inputs)) % outputs

    def closure():
        model.zero_grad()
        out = model(inputs)
        loss = F.mse_loss(out, targets) if outputs == 1 else F.cross_entropy(out, targets)
        loss.backward()
        return loss.detach()

    return closure


def make_step(posterior, flat, model: nn.Module, inputs: torch.Tensor) -> Work:
    state = posterior.init(model, partial(torch.optim.SGD, lr=1e-4), 1000)
    closure = flat(make_closure(state.model, inputs), state.model)
    return lambda: posterior.step(state, closure)


def make_baseline_step(model: nn.Module, inputs: torch.Tensor, gradients: int, one_pass: bool) -> Work:
    closure, params = make_closure(model, inputs), list(model.parameters())
    size = sum(p.numel() for p in params)
    raw = nn.Parameter(torch.zeros(size), requires_grad=False)
    raw.grad = torch.zeros(size)
    optimizer = torch.optim.SGD([*params, raw], lr=1e-4)
    mean, std, noise, weights, installed, grad = torch.rand(6, size).unbind()

    def work():
        for _ in range(gradients):
            closure()
        if one_pass:
            run_pass(mean, std, noise, weights, installed, grad)
        optimizer.step()

    return work


def run_pass(mean, std, noise, weights, installed, grad) -> None:
    noise.normal_()
    torch.addcmul(mean, std, noise, out=weights)
    installed.copy_(weights)
    grad.mul_(noise)
