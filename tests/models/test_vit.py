"""The vision transformer with all methods that have requirements on a network."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core.tensor_lists import flatten
from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.hessian import DOUBLE_BACKWARD, HessianVectorProduct, central_difference
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.models import ViT
from flatbayes.models.vit import SelfAttention
from flatbayes.posteriors import LRT, MAP, SGLD, SGVB, SWAG, Laplace
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig, fit

SHAPE = (1, 8, 8)
SMALL = partial(ViT, SHAPE, 3, dim=8, depth=2, heads=2)


def examples(count=24):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 3
    return torch.randn(count, *SHAPE, generator=generator) + targets.view(-1, 1, 1, 1), targets


def test_attention_is_that_of_pytorch():
    torch.manual_seed(0)
    ours, theirs, x = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(2, 5, 12)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.queries_keys_values.weight)
        theirs.in_proj_bias.copy_(ours.queries_keys_values.bias.normal_())
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_patches_correspond_to_image_regions():
    # Without positions the class token sees a set of patches; with them, an image.
    torch.manual_seed(0)
    model, x = SMALL().eval(), torch.randn(1, *SHAPE)
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)
    assert not torch.allclose(model(x), model(swapped), atol=1e-5)
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(x), model(swapped))


def test_has_truncated_normal_initialisation():
    torch.manual_seed(0)
    model = ViT((3, 32, 32), 10)
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            assert not param.any(), name
        elif "norm" in name:
            assert (param == 1).all(), name
        elif param.numel() > 2000:
            assert param.std().item() == pytest.approx(0.02, rel=0.05), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_shape": (1, 9, 8)}, "9 x 8 pixels does not consist of whole patches of 4 x 4"),
        ({"heads": 3}, "dim must be a multiple of heads, got dim=8 and heads=3"),
        ({"pool": "max"}, "pool must be class or mean, got 'max'"),
        ({"depth": 0}, "depth must be .*, got 0"),
    ],
)
def test_invalid_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{"input_shape": SHAPE, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2} | wrong)


def test_products_with_the_hessian_are_exact_and_those_without_double_backward_agree():
    torch.manual_seed(0)
    model = SMALL().double().eval()
    x, y = examples()
    surface = LossSurface(model, F.cross_entropy, [(x.double(), y)])
    products = HessianVectorProduct(surface)
    assert products.method == DOUBLE_BACKWARD
    direction = [torch.randn_like(param) for param in surface.params]
    exact, differences = flatten(products(direction)), flatten(central_difference(surface, direction, 1e-4))
    assert exact.norm() > 0
    torch.testing.assert_close(differences, exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize(
    "posterior",
    [
        MAP(),
        SWAG(rank=2),
        SGLD(),
        SGVB(),
        LRT(),
        LRT(estimator="flipout"),
        Laplace("last_layer", prior_precision=1.0),
        Laplace("diag", prior_precision=1.0),
        Laplace("diag", "sampled", prior_precision=1.0),
    ],
    ids=repr,
)
def test_every_kind_of_posterior_fits_it(posterior, tmp_path):
    x, y = examples()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    config = TrainingConfig(
        epochs=2, collection=CollectionConfig(start_fraction=0.0), optimizer=lambda p: torch.optim.SGD(p, lr=0.05)
    )
    fitted = fit(SMALL, loader, posterior, SAM(rho=0.05), config, likelihood=Categorical(3))
    predictive = fitted.predict(x, 3)
    assert predictive.mean.isfinite().all()
    fitted.save(tmp_path)
    assert torch.equal(FittedPosterior.load(tmp_path, SMALL).predict(x, 3).log_probs, predictive.log_probs)


def test_kronecker_factors_refuse_unsupported_parameters():
    x, y = examples()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)

    with pytest.raises(ValueError, match=r"class_token.*structure='diag'"):
        fit(
            SMALL,
            loader,
            Laplace("kron", prior_precision=1.0),
            SAM(),
            TrainingConfig(epochs=1),
            likelihood=Categorical(3),
        )


def test_lrt_covers_all_linear_layers():
    from flatbayes.posteriors.variational_network import bayesian_parameters, make_variational_network

    network = make_variational_network(SMALL())
    without = {n for n, _ in network.named_parameters()} - set(bayesian_parameters(network))
    assert {name.rpartition(".")[0].rpartition(".")[2].rstrip("12") for name in without} == {"", "norm"}
