"""Properties of all architectures, and the published parameter counts."""

from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import models
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.models import MLP, VGG, ConvNet, DenseNet, PreResNet, ResNet, ViT, WideResNet

GREY, COLOUR, WIDE = (1, 8, 8), (3, 32, 32), (2, 9, 12)
IMAGE_MODELS = [
    ConvNet,
    partial(ConvNet, width=4),
    partial(PreResNet, depth=8),
    partial(PreResNet, depth=47),
    partial(WideResNet, depth=10, width=1),
    partial(WideResNet, depth=16, width=2),
    partial(ResNet, depth=10, width=4),
    partial(ResNet, depth=50, width=2, stem="large"),
    partial(VGG, depth=11, width=2, hidden=()),
    partial(VGG, depth=11, width=2, hidden=(8, 8), batch_norm=False),
    partial(DenseNet, growth=1),
    partial(ViT, dim=8, depth=2, heads=2),
    partial(ViT, dim=8, depth=1, heads=4, patch=1, pool="mean"),
]


def fits(make, shape):
    """Whether images of this shape consist of whole patches of the network."""
    patch = make.keywords.get("patch", 4) if getattr(make, "func", make) is ViT else 1
    return shape[1] % patch == 0 and shape[2] % patch == 0


CASES = [
    *[(make, shape) for make in IMAGE_MODELS for shape in (GREY, COLOUR, WIDE) if fits(make, shape)],
    *[(MLP, shape) for shape in ((5,), (4, 3), GREY)],
    (partial(MLP, hidden=()), (5,)),
    (partial(MLP, hidden=(7,)), (5,)),
]


def count(model):
    return sum(param.numel() for param in model.parameters())


def dropouts(model):
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


def test_every_exported_architecture_is_tested():
    tested = {getattr(make, "func", make).__name__ for make, _ in CASES}
    assert tested == {name for name in models.__all__ if isinstance(getattr(models, name), type)}


@pytest.mark.parametrize(("make", "shape"), CASES)
class TestEveryArchitecture:
    @pytest.mark.parametrize("num_classes", [1, 2, 10])
    def test_one_logit_per_class(self, make, shape, num_classes):
        model = make(shape, num_classes).eval()
        assert model(torch.randn(3, *shape)).shape == (3, num_classes)

    def test_the_gradient_reaches_every_parameter(self, make, shape):
        torch.manual_seed(0)
        model = make(shape, 3)
        nn.functional.cross_entropy(model(torch.randn(4, *shape)), torch.tensor([0, 1, 2, 0])).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_prediction_is_deterministic_and_independent_of_the_batch(self, make, shape):
        torch.manual_seed(0)
        model, x = make(shape, 3, dropout=0.5), torch.randn(2, *shape)
        model.train()
        model(x)
        model.eval()
        outputs = model(x)
        assert torch.equal(model(x), outputs)
        torch.testing.assert_close(outputs[:1], model(x[:1]))

    def test_dropout_has_the_rate_and_acts_in_training_only(self, make, shape):
        torch.manual_seed(0)
        model, x = make(shape, 3, dropout=0.5), torch.randn(4, *shape)
        rates = [module.p for module in dropouts(model)]
        if isinstance(make, partial) and make.func is MLP and make.keywords["hidden"] == ():
            assert rates == []
            return
        assert rates
        assert set(rates) == {0.5}
        assert not torch.equal(model(x), model(x))

    def test_dropout_modules_of_rate_0_do_nothing(self, make, shape):
        torch.manual_seed(0)
        model, x = make(shape, 3), torch.randn(4, *shape)
        assert len(dropouts(model)) == len(dropouts(make(shape, 3, dropout=0.5)))
        assert {module.p for module in dropouts(model)} <= {0.0}
        assert torch.equal(model(x), model(x))

    def test_is_rebuilt_from_its_spec(self, make, shape):
        make = make if isinstance(make, partial) else partial(make)
        spec = to_spec(partial(make.func, **make.keywords, input_shape=shape, num_classes=3))
        model = instantiate(spec, package="flatbayes.models")
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in make(shape, 3).state_dict().items()
        }

    def test_same_seed_same_weights(self, make, shape):
        states = []
        for _ in range(2):
            torch.manual_seed(1)
            states.append(make(shape, 3).state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    @pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
    def test_invalid_dropout_rates_are_refused(self, make, shape, rate):
        with pytest.raises(ValueError, match="dropout rate must be at least 0 and below 1, got"):
            make(shape, 3, dropout=rate)

    def test_zero_classes_are_refused(self, make, shape):
        with pytest.raises(ValueError, match=r"num_classes must be .*, got 0\."):
            make(shape, 0)

    def test_empty_input_shapes_are_refused(self, make, shape):
        with pytest.raises(ValueError, match=r"input_shape must be .*, got "):
            make((0, *shape[1:]), 3)
        with pytest.raises(ValueError, match=r"input_shape must be .*, got \(\)\."):
            make((), 3)


@pytest.mark.parametrize("make", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 1, 8, 8)])
def test_image_models_refuse_other_shapes(make, shape):
    with pytest.raises(ValueError, match=r"needs images, .* got \(.*Use MLP"):
        make(shape, 3)


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (partial(PreResNet, depth=20), 272_282),  # 0.27 M
        (partial(PreResNet, depth=110), 1_146_842),  # 1.15 M with bottlenecks
        (partial(PreResNet, depth=164), 1_703_258),  # 1.70 M
        (WideResNet, 36_479_194),  # WRN-28-10
        (partial(WideResNet, depth=16, width=4), 2_748_890),  # 2.75 M
        (partial(WideResNet, depth=40, width=2), 2_243_546),  # 2.2 M
        (partial(ResNet, depth=10), 4_903_242),  # 4.90 M
        (ResNet, 11_173_962),  # ResNet-18: 11.17 M
        (partial(VGG, batch_norm=False), 15_245_130),  # 15.2 M
        (VGG, 15_253_578 - 4_224),  # 15.25 M; the biases that BatchNorm would take away again are left out
        (partial(VGG, batch_norm=False, hidden=()), 14_719_818),  # 14.7 M
    ],
)
def test_parameter_counts_are_the_published_ones(make, published):
    with torch.device("meta"):
        assert count(make((3, 32, 32), 10)) == published


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (partial(ResNet, depth=18), 11_689_512),
        (partial(ResNet, depth=34), 21_797_672),
        (partial(ResNet, depth=50), 25_557_032),
        (partial(ResNet, depth=101), 44_549_160),
        (partial(ResNet, depth=152), 60_192_808),
        (partial(DenseNet, depth=121), 7_978_856),
        (partial(DenseNet, depth=161), 28_681_000),
        (partial(DenseNet, depth=169), 14_149_480),
        (partial(DenseNet, depth=201), 20_013_928),
        (partial(ViT, patch=16, dim=192, depth=12, heads=3), 5_717_416),  # DeiT-Ti
        (partial(ViT, patch=16, dim=384, depth=12, heads=6), 22_050_664),  # DeiT-S
        (partial(ViT, patch=16, dim=768, depth=12, heads=12), 86_567_656),  # ViT-B/16
    ],
)
def test_parameter_counts_for_imagenet_are_the_published_ones(make, published):
    if make.func is not ViT:
        make = partial(make, stem="large")
    with torch.device("meta"):
        assert count(make((3, 224, 224), 1000)) == published


@pytest.mark.parametrize(
    ("make", "some_names"),
    [
        (
            ResNet,
            ["conv1.weight", "bn1.running_var", "layer2.0.downsample.1.weight", "layer4.1.conv2.weight", "fc.bias"],
        ),
        (
            partial(DenseNet, growth=1),
            [
                "features.conv0.weight",
                "features.norm0.bias",
                "features.denseblock3.denselayer24.norm2.weight",
                "features.transition1.conv.weight",
                "features.norm5.weight",
                "classifier.weight",
            ],
        ),
    ],
)
def test_parameters_are_named_as_in_published_weights(make, some_names):
    with torch.device("meta"):
        names = set(make(COLOUR, 10, stem="large").state_dict())
    assert set(some_names) <= names
    assert not [name for name in names if "dropout" in name or "pool" in name]


@pytest.mark.parametrize("make", [ResNet, partial(DenseNet, growth=1)])
def test_the_large_stem_reduces_images_by_four(make):
    sizes = {}
    for stem in ("small", "large"):
        model = make(COLOUR, 10, stem=stem).eval()
        inner = model.layer1 if isinstance(model, ResNet) else model.features.denseblock1
        inner.register_forward_hook(lambda *args, stem=stem: sizes.update({stem: args[2].shape[-1]}))
        model(torch.randn(1, *COLOUR))
    assert sizes == {"small": 32, "large": 8}


@pytest.mark.parametrize("make", [ResNet, DenseNet])
def test_an_unknown_stem_is_refused(make):
    with pytest.raises(ValueError, match="stem must be small or large, got 'tiny'"):
        make(COLOUR, 10, stem="tiny")


@pytest.mark.parametrize(
    ("depth", "convs"), [(8, 7 + 2), (20, 19 + 2), (38, 37 + 2), (47, 46 + 3), (110, 109 + 3), (164, 163 + 3)]
)
def test_depth_of_a_pre_resnet_counts_its_layers(depth, convs):
    # All layers but the classifier, and the projections where channels change.
    with torch.device("meta"):
        model = PreResNet((3, 32, 32), 10, depth)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convs


@pytest.mark.parametrize(
    ("model", "depth", "nearest"),
    [
        (PreResNet, 2, "8"),
        (PreResNet, 21, "20 or 26"),
        (PreResNet, 44, "38 or 47"),
        (PreResNet, 163, "155 or 164"),
        (WideResNet, 0, "10"),
        (WideResNet, 27, "22 or 28"),
        (WideResNet, -3, "10"),
        (ResNet, 20, "18 or 34"),
        (VGG, 17, "16 or 19"),
        (DenseNet, 100, "121"),
    ],
)
def test_invalid_depths_name_the_nearest_ones(model, depth, nearest):
    with pytest.raises(ValueError, match=rf"cannot have depth {depth}: the nearest possible depth is {nearest}\."):
        model(COLOUR, 10, depth)


@pytest.mark.parametrize("make", [ConvNet, WideResNet, ResNet, VGG])
def test_zero_width_is_refused(make):
    with pytest.raises(ValueError, match=r"width must be .*, got 0"):
        make(COLOUR, 10, width=0)


def test_empty_hidden_layers_are_refused():
    with pytest.raises(ValueError, match=r"hidden must be .*, got 0"):
        MLP((5,), 2, hidden=(8, 0))


def test_mlp_is_linear_without_hidden_layers():
    torch.manual_seed(0)
    model = MLP((2, 3), 4, hidden=())
    x, y = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    torch.testing.assert_close(model(x + y) - model(x), model(y) - model(torch.zeros_like(y)))
    assert count(model) == 6 * 4 + 4


def test_mlp_sizes_and_places_of_dropout():
    kinds = [type(module).__name__ for module in MLP((2, 3), 4, hidden=(7, 5)).layers]
    assert kinds == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert count(MLP((2, 3), 4, hidden=(7, 5))) == (6 * 7 + 7) + (7 * 5 + 5) + (5 * 4 + 4)


@pytest.mark.parametrize("make", [PreResNet, partial(WideResNet, depth=16, width=1)])
def test_one_dropout_in_each_residual_block_before_its_last_convolution(make):
    model = make(COLOUR, 10, dropout=0.3)
    branches = [module.branch for module in model.modules() if hasattr(module, "branch")]
    assert len(dropouts(model)) == len(branches) > 0
    assert all(isinstance(b[-2], nn.Dropout) and isinstance(b[-1], nn.Conv2d) for b in branches)


@pytest.mark.parametrize("make", [make for make in IMAGE_MODELS if getattr(make, "func", make) is not ViT])
def test_convolutions_have_kaiming_initialisation(make):
    torch.manual_seed(0)
    for module in make(COLOUR, 10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_a_pre_activation_block_adds_to_its_unchanged_input():
    from flatbayes.models.residual import PreActivationBlock

    block = PreActivationBlock((4, 4, 4), (3, 3), stride=1, dropout=0.0).eval()
    nn.init.zeros_(block.branch[-1].weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_a_pre_activation_block_has_norm_and_relu_before_each_convolution():
    kinds = [type(module).__name__ for module in PreResNet(COLOUR, 10).network.stage1[0].modules()]
    leaves = [kind for kind in kinds if kind not in ("PreActivationBlock", "Sequential")]
    assert leaves == ["BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d"]


@pytest.mark.parametrize("make", [PreResNet, partial(PreResNet, depth=47), partial(WideResNet, depth=10, width=1)])
def test_the_second_and_third_stage_halve_the_image(make):
    network, sizes = make(COLOUR, 10).eval().network, []
    for stage in (network.stage1, network.stage2, network.stage3):
        stage.register_forward_hook(lambda *args: sizes.append(tuple(args[2].shape[2:])))
    network(torch.randn(1, *COLOUR))
    assert sizes == [(32, 32), (16, 16), (8, 8)]


def test_conv_net_learns_the_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.images).float().div(8).sub(1).unsqueeze(1)[order]
    y = torch.tensor(digits.target).long()[order]
    model, epochs = ConvNet(GREY, 10, width=16), 20  # narrower and shorter than one would, to be quick
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(500).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        assert (model(x[500:]).argmax(-1) == y[500:]).float().mean() > 0.96
