"""Perturbations of vectorized networks: each is that of the network alone, whatever the gradients of the others."""

import pytest
import torch

from flatbayes.core.context import vectorized
from flatbayes.core.norms import global_norm
from flatbayes.flatness.asam import adaptive_perturbation, adaptive_scale
from flatbayes.flatness.fisher_sam import fisher_perturbation, inverse_diagonal, relative_weight
from flatbayes.flatness.sam import euclidean_perturbation

NAMES = ("layer.weight", "layer.bias", "scale")
WEIGHTS = dict(zip(NAMES, [torch.randn(3, 4, 2), torch.randn(3, 4), torch.randn(3)], strict=True))
RULES = {
    "SAM": lambda weights, grads: euclidean_perturbation(grads, 0.3),
    "ASAM": lambda weights, grads: adaptive_perturbation(grads, adaptive_scale(weights, 0.01), 0.3),
    "FisherSAM": lambda weights, grads: fisher_perturbation(
        grads, lambda group: inverse_diagonal([grads[k] for k in group], relative_weight(grads, 1.5)), 0.3
    ),
}


@pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))
@pytest.mark.parametrize("of_second", [5.0, 0.0, torch.inf, torch.nan])
def test_each_network_has_the_perturbation_it_has_alone(rule, of_second):
    grads = [torch.randn_like(w) for w in WEIGHTS.values()]
    for grad in grads:
        grad[1] *= of_second
    with vectorized(3):
        perturbation = rule(WEIGHTS, grads)
    assert perturbation.is_finite
    for k in range(3):
        alone = rule({name: w[k] for name, w in WEIGHTS.items()}, [g[k] for g in grads])
        if alone.is_finite:
            for mine, expected in zip(perturbation.to_tensors(), alone.to_tensors(), strict=True):
                torch.testing.assert_close(mine[k], expected)
        else:
            assert not any(mine[k].isfinite().any() for mine in perturbation.to_tensors())


def test_low_precision_keeps_its_dtype():
    grads = [torch.randn(2, 5).bfloat16()]
    with vectorized(2):
        tensors = euclidean_perturbation(grads, 0.1).to_tensors()
        norms = global_norm(tensors)
    assert tensors[0].dtype == torch.bfloat16
    torch.testing.assert_close(norms, torch.full((2,), 0.1), rtol=1e-2, atol=0)
