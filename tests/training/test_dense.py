"""Training with a class at each position: pixels in memory, tokens of loaders, what is inferred and refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatbayes import (
    IVON,
    MAP,
    SAM,
    SGLD,
    SGVB,
    SWAG,
    TFB,
    Arrays,
    Categorical,
    DenseCategorical,
    Ensemble,
    FittedPosterior,
    Laplace,
    MCDropout,
    Plain,
    TrainingConfig,
    calibrate,
    evaluate,
    fit,
    fit_together,
)
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits, Split
from flatbayes.likelihoods import Likelihood
from flatbayes.prediction import evaluate_recalibration
from flatbayes.training import DistributionConfig
from flatbayes.training.candidates import measure_losses
from flatbayes.training.data import InMemoryData
from flatbayes.training.fabric import SingleDevice
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.training_examples import match_position_labels

CONFIG = TrainingConfig(epochs=3, batch_size=8)


def make_images(count=24, size=6, seed=0):
    """Noisy images of a bright rectangle, and the class of each pixel: 0, or 1 in the rectangle, 2 in its corner."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    for mask, (row, column) in zip(masks, torch.randint(size - 3, (count, 2), generator=generator), strict=True):
        mask[row : row + 3, column : column + 3] = 1
        mask[row, column] = 2
    images = torch.stack([(masks > 0).float(), (masks == 2).float()], 1)
    return images + 0.3 * torch.randn(images.shape, generator=generator), masks


class Segmenter(nn.Module):
    def __init__(self, num_classes=3, dropout=0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Dropout(dropout), nn.Conv2d(6, num_classes, 1)
        )

    def forward(self, images):
        return self.layers(images)


class Tagger(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 5), nn.Linear(5, num_classes)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.embed(input_ids))}


def make_texts(count=24, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 12, (count, length), generator=generator)
    sizes = torch.randint(3, length + 1, (count, 1), generator=generator)
    mask = (torch.arange(length) < sizes).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.where(mask == 1, ids % 3, -100)


class Texts(Dataset):
    def __init__(self):
        self.encodings, self.labels = make_texts()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.encodings.items()} | {"labels": self.labels[index]}


def cut_to_longest(items):
    """A batch whose length is that of its longest text."""
    length = max(int(item["attention_mask"].sum()) for item in items)
    return {name: torch.stack([item[name][:length] for item in items]) for name in items[0]}


def test_images_of_one_pixel_fit_as_rows_of_a_classification():
    """A convolution of size 1 on one pixel is a linear layer; weights and predictions are equal bit for bit."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 4, generator=generator)
    labels = rows[:, :3].argmax(1)
    weights = {"weight": torch.randn(3, 4, generator=generator), "bias": torch.zeros(3)}
    pixels = nn.Conv2d(4, 3, 1)
    pixels.load_state_dict({"weight": weights["weight"][..., None, None], "bias": weights["bias"]})
    linear = nn.Linear(4, 3)
    linear.load_state_dict(weights)
    config = TrainingConfig(epochs=5, batch_size=8)
    for flatness in (Plain(), SAM(rho=0.1)):
        dense = fit(pixels, (rows[..., None, None], labels[:, None, None]), SWAG(), flatness, config, seed=0)
        flat = fit(linear, (rows, labels), SWAG(), flatness, config, seed=0)
        assert dense.likelihood == DenseCategorical(3)
        assert dense.states[0].num_data == flat.states[0].num_data == 40
        first, second = (fitted.states[0].model.state_dict() for fitted in (dense, flat))
        torch.testing.assert_close(first["weight"][..., 0, 0], second["weight"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            dense.predict(rows[..., None, None]).mean[:, 0, 0], flat.predict(rows).mean, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "posterior",
    [
        MAP(),
        SWAG(),
        MCDropout(),
        Ensemble(MAP(), 2),
        SGLD(),
        SGVB(),
        IVON(),
        Laplace(structure="kron", prior_precision=1.0),
    ],
    ids=lambda posterior: type(posterior).__name__,
)
def test_posteriors_segment_images(posterior, tmp_path):
    images, masks = make_images()
    masks[:3, :2] = -100
    fitted = fit(Segmenter, (images, masks), posterior, SAM(rho=0.05), CONFIG, seed=0)
    predictive = fitted.predict(images, num_draws=4, batch_size=10)
    assert predictive.mean.shape == (24, 6, 6, 3)
    evaluation = evaluate(fitted, images, masks, num_draws=4)
    assert list(evaluation.metrics) == ["accuracy", "nll", "ece", "brier", "auroc_correct", "mean_iou"]
    flat, labels = predictive.select_labelled(masks)
    assert len(labels) == 24 * 36 - 3 * 12
    assert evaluation.metrics["nll"] == pytest.approx(-float(flat.log_probs.gather(1, labels[:, None]).mean()), 1e-5)
    fitted.save(tmp_path / "artefact")
    loaded = FittedPosterior.load(tmp_path / "artefact", Segmenter)
    assert loaded.likelihood == fitted.likelihood
    assert torch.equal(loaded.predict(images, num_draws=4, batch_size=10).mean, predictive.mean)
    assert "3 classes at each position" in fitted.summary()
    assert fitted.check(images, masks, num_draws=4).summary()


def test_segmentation_is_learned():
    """The classes are found, and the entropy is higher next to another class."""
    images, masks = make_images(200)
    test_images, test_masks = make_images(50, seed=1)
    config = TrainingConfig(epochs=20, batch_size=10)
    fitted = fit(Segmenter, (images, masks), SWAG(), SAM(rho=0.05), config, seed=0)
    metrics = evaluate(fitted, test_images, test_masks).metrics
    assert metrics["accuracy"] > 0.95
    assert metrics["mean_iou"] > 0.8
    entropy = fitted.predict(test_images).entropy
    inside = nn.functional.max_pool2d((test_masks > 0).float(), 3, 1, 1) == 0
    assert entropy[~inside].mean() > 1.5 * entropy[inside].mean()


def test_early_stopping_and_options_that_are_chosen():
    images, masks = make_images(120)
    fitted = fit(Segmenter, (images, masks), SWAG(), Plain(), {"batch_size": 20}, seed=0)
    training = fitted.info["training"]
    assert fitted.info["held_out"] == 18
    assert training["best_epochs"]
    assert training["draw_options"]["scale"]["val_nll"]
    assert training["last_epoch"]["val_accuracy"] > 0.9


@pytest.mark.parametrize("criterion", ["nll", "pseudo_nll", "changed_classes"])
def test_criteria_of_the_width_are_those_of_positions(criterion):
    images, masks = make_images()
    masks[:, 0] = -100
    posterior = TFB(std="auto", criterion=criterion)
    fitted = fit(Segmenter, (images, masks), posterior, Plain(), CONFIG, val=make_images(seed=1), seed=0)
    assert fitted.posterior.std >= 0


def test_validation_in_batches_has_the_loss_of_all_positions(monkeypatch):
    images, masks = make_images()
    masks[:5, :4], masks[20:, 1:] = -100, -100
    config = TrainingConfig(epochs=1, batch_size=8, validate_every_n_epochs=1)
    records = []
    for limit in (2**20, 5 * 36):
        monkeypatch.setattr("flatbayes.training.data.MAX_EVAL_POSITIONS", limit)
        data = [images, masks]
        records.append(fit(Segmenter, data, MAP(), Plain(), config, val=(images, masks), seed=0))
    network = records[0].states[0].model.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(records[0].transform(images)), masks)
    loader = DataLoader(TensorDataset(records[0].transform(images), masks), 5)
    fitted = fit(network, loader, MAP(), Plain(), TrainingConfig(epochs=0), val=loader)
    for record in records:
        last = record.info["training"]["last_epoch"]
        assert last["val_nll"] == pytest.approx(float(expected), rel=1e-5)
    assert evaluate(fitted, loader).metrics["nll"] == pytest.approx(float(expected), rel=1e-5)
    likelihood = fitted.likelihood
    data = LoaderData(loader, val=loader, likelihood=likelihood)
    validate = data.make_validator(likelihood, ProcessGroupInfo())
    assert validate(network)["val_nll"] == pytest.approx(float(expected), rel=1e-5)
    mean, losses = measure_losses(likelihood, data.predict_validation(network))  # of the candidates of a radius
    assert mean == pytest.approx(float(expected), rel=1e-5)
    assert len(losses) == len(images)
    assert float(losses.mean()) == pytest.approx(mean)
    masks[:4] = -100
    _, losses = measure_losses(likelihood, [(network(images).detach(), masks)])
    assert len(losses) == len(images) - 4  # without those that have no label


@pytest.mark.parametrize("data", ["loader", "ragged", "dataset", "pair", "splits"])
def test_tokens_of_every_form_of_data(data):
    encodings, labels = make_texts()
    split = Split(inputs=encodings, targets=labels)
    examples = {
        "loader": DataLoader(Texts(), 8),
        "ragged": DataLoader(Texts(), 4, collate_fn=cut_to_longest),
        "dataset": Texts(),
        "pair": (encodings, labels),
        "splits": DataSplits(
            train=split, val=split, test=split, class_names=("a", "b", "c"), feature_names=(), augment=None
        ),
    }[data]
    with preserve_rng(None):
        torch.manual_seed(0)
        network = Tagger()
    fitted = fit(network, examples, SWAG(), Plain(), CONFIG, seed=0)
    assert fitted.likelihood == DenseCategorical(3, class_dim=-1)
    assert fitted.states[0].num_data == 24
    evaluated = evaluate(fitted, split if data == "splits" else examples, num_draws=4)
    whole = evaluate(fitted, (encodings, labels), num_draws=4)
    assert evaluated.metrics == pytest.approx(whole.metrics, rel=1e-5)
    if data == "ragged":
        predictive = fitted.predict(examples, num_draws=4)
        assert predictive.mean.shape == (24, 6, 3)
        expected = fitted.predict(encodings, num_draws=4).entropy
        is_token = encodings["attention_mask"] == 1
        torch.testing.assert_close(predictive.entropy[is_token], expected[is_token])


def test_early_stopping_on_batches_of_several_lengths():
    loader = DataLoader(Texts(), 4, collate_fn=cut_to_longest)
    fitted = fit(Tagger(), loader, SWAG(), Plain(), val=loader, seed=0)
    assert fitted.info["training"]["draw_options"]["scale"]["val_nll"]


def test_token_ids_in_an_array():
    encodings, labels = make_texts()

    class Ids(Tagger):
        def forward(self, input_ids):
            return super().forward(input_ids)["logits"]

    fitted = fit(Ids, (encodings["input_ids"], labels), MAP(), Plain(), CONFIG)
    assert fitted.likelihood == DenseCategorical(3, class_dim=-1)
    assert evaluate(fitted, encodings["input_ids"], labels).metrics["accuracy"] > 0


def test_laplace_of_the_last_layer_has_the_curvature_of_the_mean_over_positions():
    encodings, labels = make_texts()
    posterior = Laplace(prior_precision=1.0)
    fitted = fit(Tagger(), (encodings, labels), posterior, Plain(), TrainingConfig(epochs=1, batch_size=24))
    network = fitted.states[0].model.eval()
    tagger = next(module for module in network.modules() if isinstance(module, Tagger))
    with torch.no_grad():
        features = tagger.embed(encodings["input_ids"])
        probs = tagger.head(features).softmax(-1).double()
    is_labelled = labels >= 0
    extended = torch.cat([features, torch.ones(*features.shape[:2], 1)], -1).double()[is_labelled]
    hessians = (torch.diag_embed(probs) - probs[..., :, None] * probs[..., None, :])[is_labelled]
    blocks = torch.einsum("ni,ncd,nj->cidj", extended, hessians, extended) * (24 / int(is_labelled.sum()))
    scale = fitted.states[0].statistics["scale"].double()
    computed = (scale @ scale.T).inverse() - torch.eye(len(scale))
    size = features.shape[-1]
    order = [(c, i) for c in range(3) for i in range(size)] + [(c, size) for c in range(3)]
    expected = torch.tensor([[float(blocks[c, i, d, j]) for d, j in order] for c, i in order]).double()
    torch.testing.assert_close(computed, expected, rtol=1e-3, atol=1e-4)


def test_laplace_refuses_many_pixels_before_training():
    images, masks = make_images(size=28)
    with pytest.raises(ValueError, match=r"Hessian .*2,352 of them, of the shape \(3, 28, 28\).*Use SWAG"):
        fit(Segmenter, (images, masks), Laplace(structure="kron", prior_precision=1.0), config={"epochs": 9999})


@pytest.mark.parametrize("steps", [1, 4])
def test_vectorized_members_are_those_of_one_by_one(steps):
    """Also in micro-batches, which each have another number of labelled pixels, other ones in each member."""
    images, masks = make_images()
    masks[:8, 1:] = -100
    predictions = []
    for members in ("vectorized", "one_by_one"):
        distribution = DistributionConfig(members=members, accelerator="cpu")
        optimization = {"accumulation_steps": steps}
        config = TrainingConfig(epochs=3, batch_size=8, distribution=distribution, optimization=optimization)

        def make_network():
            return Segmenter(dropout=0.0)

        fitted = fit(make_network, (images, masks), Ensemble(MAP(), 2), SAM(rho=0.05), config, seed=0)
        predictions.append(fitted.predict(images).log_probs)
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_loader", [False, True])
def test_micro_batches_weigh_labelled_pixels_alike(as_loader):
    images, masks = make_images()
    masks[:8, 1:] = -100
    network, states = Segmenter(dropout=0.0), []
    for steps in (1, 4):
        config = TrainingConfig(epochs=2, batch_size=24, optimization={"accumulation_steps": steps})
        data = DataLoader(TensorDataset(images, masks), 24) if as_loader else (images, masks)
        states.append(fit(network, data, MAP(), Plain(), config, seed=0).states[0].model.state_dict())
    for name, values in states[0].items():
        torch.testing.assert_close(states[1][name], values, rtol=1e-4, atol=1e-6)


def test_several_posteriors_of_one_training():
    together = fit_together(Segmenter, make_images(), [MAP(), SWAG()], Plain(), CONFIG)
    assert [fitted.likelihood for fitted in together] == 2 * [DenseCategorical(3)]


class PretrainedSegmenter(nn.Module):
    """As those of torchvision: a gate with a linear layer, the head of the outputs, and then an auxiliary one."""

    def __init__(self, num_classes=7):
        super().__init__()
        self.backbone = nn.Conv2d(2, 6, 3, padding=1)
        self.gate = nn.Linear(6, 6)
        self.classifier = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, num_classes, 1))
        self.aux_classifier = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, num_classes, 1))

    def forward(self, images):
        features = self.backbone(images)
        features = features * self.gate(features.mean((2, 3)))[..., None, None].sigmoid()
        return {"out": self.classifier(features), "aux": self.aux_classifier(features)}


@pytest.mark.parametrize("as_loader", [False, True])
def test_the_last_convolution_gets_the_classes_of_the_data(as_loader, tmp_path):
    images, masks = make_images()
    data = DataLoader(TensorDataset(images, masks), 8) if as_loader else (images, masks)
    network, options = PretrainedSegmenter(), {"new_head": True, "freeze": ["backbone*"], "output": "out", "seed": 0}
    fitted = fit(network, data, MAP(), Plain(), CONFIG, **options)
    trained = fitted.states[0].model.state_dict()
    head = next(name for name in trained if name.endswith("classifier.2.weight") and "aux" not in name)
    assert trained[head].shape == (3, 6, 1, 1)
    backbone = next(values for name, values in trained.items() if name.endswith("backbone.weight"))
    assert torch.equal(backbone, network.backbone.weight)
    assert network.classifier[2].out_channels == 7
    fitted.save(tmp_path / "artefact")
    loaded = FittedPosterior.load(tmp_path / "artefact", network)
    assert torch.equal(loaded.predict(images).mean, fitted.predict(images).mean)
    again = fit(
        PretrainedSegmenter(3),
        data,
        MAP(),
        Plain(),
        CONFIG,
        init=network.state_dict()
        | {name: values for name, values in PretrainedSegmenter(3).state_dict().items() if "aux" in name},
        **options,
    )
    assert again.likelihood == fitted.likelihood == DenseCategorical(3)


class FocalPixels(Likelihood):
    """A likelihood of positions of the user's own: the focal loss, and the predictions of `DenseCategorical`."""

    has_positions = True
    num_outputs = 3
    pixels = DenseCategorical(3, ignore_index=255)

    def prepare_targets(self, targets):
        return self.pixels.prepare_targets(targets)

    def find_labelled(self, targets):
        return self.pixels.find_labelled(targets)

    def find_targets(self, targets):
        return self.pixels.find_targets(targets)

    def count_targets(self, targets):
        return self.pixels.count_targets(targets)

    def loss(self, outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets, ignore_index=255, reduction="none")
        return (losses * (1 - (-losses).exp()) ** 2).sum() / self.count_targets(targets)

    def predictive(self, outputs, *, keep_members=False):
        return self.pixels.predictive(outputs, keep_members=keep_members)


def test_a_likelihood_of_positions_of_the_users_own_needs_no_more_than_to_say_so():
    images, masks = make_images()
    masks[:8, 1:] = 255
    network, weights = Segmenter(dropout=0.0), []
    for steps in (1, 4):  # micro-batches weigh labelled pixels
        config = TrainingConfig(epochs=8, batch_size=24, optimization={"accumulation_steps": steps})
        data = DataLoader(TensorDataset(images, masks), 24)
        fitted = fit(network, data, SWAG(), Plain(), config, likelihood=FocalPixels(), seed=0)
        weights.append(fitted.states[0].model.layers[0].weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    flat, labels = fitted.predict(images).select_labelled(masks, 255)
    nll = float(nn.functional.nll_loss(flat.log_probs, labels))
    for examples in (data, (images, masks)):
        assert evaluate(fitted, examples).metrics["nll"] == pytest.approx(nll, rel=1e-5)
    assert fitted.check(images, masks)["wide_posterior"].name == "wide_posterior"
    assert calibrate(fitted, images, masks).calibration.num_examples == 24
    assert evaluate_recalibration(fitted, (images, masks), (images, masks)).raw["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.cpu_path
def test_marks_of_unknown_pixels():
    """-100 and another mark are the same; images without a labelled pixel are left out."""
    images, masks = make_images()
    masks[0], masks[1, :3] = -100, -100
    as_255 = torch.where(masks < 0, 255, masks).to(torch.uint8)
    first = fit(Segmenter, (images, masks), MAP(), Plain(), CONFIG, seed=0)
    likelihood = DenseCategorical(3, ignore_index=255)
    second = fit(Segmenter, (images, as_255), MAP(), Plain(), CONFIG, likelihood=likelihood, seed=0)
    assert first.states[0].num_data == second.states[0].num_data == 23
    assert second.info["class_names"] == ["0", "1", "2"]
    assert torch.equal(first.predict(images).mean, second.predict(images).mean)
    assert evaluate(first, images, masks).metrics == evaluate(second, images, as_255).metrics
    with pytest.raises(ValueError, match="0 to 255, and .* wrong. .*set ignore_index of the likelihood"):
        fit(Segmenter(), (images, as_255), MAP(), Plain(), CONFIG)
    with pytest.raises(ValueError, match=r"needs at least 2 classes, got 0 \[\]"):
        fit(Segmenter(), (images, torch.full_like(masks, -100)), MAP(), likelihood=DenseCategorical(3))


def test_one_output_for_two_classes():
    images, masks = make_images()
    fitted = fit(Segmenter(1), (images, (masks > 0).long()), MAP(), Plain(), CONFIG)
    assert fitted.likelihood == DenseCategorical(2, single_logit=True)
    compiled = fitted.compile()(images)
    predictive = fitted.predict(images)
    assert predictive.mean.shape == (24, 6, 6, 2)
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(compiled[name], getattr(predictive, name).float(), rtol=1e-4, atol=1e-5)


def test_classes_that_no_image_has():
    fitted = fit(Segmenter(7), make_images(), MAP(), Plain(), CONFIG)
    assert fitted.likelihood == DenseCategorical(7)
    assert fitted.info["class_names"] == list("0123456")


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (nn.Conv2d(2, 3, 2, 2), {}, r"outputs of the shape \(n, 3, 3, 3\).*targets of the shape \(n, 6, 6\)"),
        (nn.Conv2d(2, 6, 1), {"likelihood": DenseCategorical(3)}, r"\(batch, 3, \*positions\) is expected"),
        (
            Segmenter(),
            {"likelihood": Categorical(3)},
            "one class of each example, and the targets are classes of pos",
        ),
        (nn.Sequential(Segmenter(), nn.Softmax(1)), {}, "outputs of the network are probabilities"),
    ],
    ids=["resolution", "classes", "categorical", "softmax"],
)
@pytest.mark.filterwarnings("error::flatbayes.training.trial.NetworkWarning")
def test_what_does_not_go_together_is_refused(network, arguments, message):
    with pytest.raises((ValueError, UserWarning), match=message):
        fit(network, make_images(), MAP(), Plain(), CONFIG, **arguments)


def test_a_square_network_needs_a_likelihood():
    """Outputs (6, 6) for targets (6,) may have the classes on either axis."""
    inputs, targets = torch.randn(20, 6), torch.arange(120).reshape(20, 6) % 6

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 36)

        def forward(self, rows):
            return self.layer(rows).unflatten(1, (6, 6))

    with pytest.raises(ValueError, match=r"either axis may be that of the classes.*likelihood=DenseCategorical"):
        fit(Square(), (inputs, targets), MAP(), Plain(), CONFIG)
    fitted = fit(Square(), (inputs, targets), MAP(), Plain(), CONFIG, likelihood=DenseCategorical(6, class_dim=-1))
    assert fitted.predict(inputs).mean.shape == (20, 6, 6)


@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize("world_size", [1, 2])
def test_classes_are_augmented_with_their_pixels(ignore_index, world_size):
    """The first channel tells the class of every pixel of every batch, whatever its flip and shift."""
    masks = torch.randint(3, (20, 5, 6), generator=torch.Generator().manual_seed(0))
    images = torch.stack([masks + 1, masks + 1], 1).float()
    splits = Arrays(images, masks, flip=True, pad=2, val_size=2, test_size=2).load(seed=0)
    data = InMemoryData(splits)
    data = match_position_labels(data, DenseCategorical(3, ignore_index=ignore_index))
    batches = data.make_batches(TrainingConfig(batch_size=8), 0, SingleDevice(torch.device("cpu")))
    for rank in range(world_size):
        share = replace(batches, world=ProcessGroupInfo(rank, world_size))
        for inputs, targets in share.iter_epoch(0):
            expected = torch.where(inputs[:, 0] == 0, ignore_index, inputs[:, 0].long() - 1)
            assert torch.equal(targets, expected)
            assert (targets == ignore_index).any()
    fitted = fit(Segmenter, splits, MAP(), Plain(), CONFIG, likelihood=DenseCategorical(3, ignore_index=ignore_index))
    assert fitted.info["training"]["last_epoch"]["loss"] > 0


def test_augmentation_of_images_whose_classes_have_other_positions_is_refused():
    images, masks = make_images()
    with pytest.raises(ValueError, match=r"images of \(6, 6\) pixels have classes of \(3, 3\) positions: leave it"):
        Arrays(images, masks[:, ::2, ::2], flip=True).load(seed=0)
