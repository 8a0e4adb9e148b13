import json

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from flatbayes import MAP, Plain, TrainingConfig, fit
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data import ClassSplit, TorchDataset, load_test_split
from flatbayes.data.checks import DataWarning
from flatbayes.data.torch_dataset import to_source_spec
from flatbayes.models import MLP
from torch_datasets import Dictionaries, Images, Points, Stream


def load(path, **options):
    return TorchDataset(f"torch_datasets.{path}", options=options)


class TestDottedPaths:
    def test_a_parameter_train_gives_two_splits(self):
        raw = load("PointsWithTrain", num_examples=24).read()
        assert (len(raw.unsplit), len(raw.test)) == (24, 12)
        assert raw.val is None
        assert torch.equal(raw.unsplit.inputs, Points(24).inputs)
        assert torch.equal(raw.test.inputs, Points(12, seed=1).inputs)
        assert raw.class_names == ("a", "b", "c")
        assert raw.feature_names == ("0", "1", "2", "3")

    def test_a_parameter_split_gives_the_named_splits(self):
        raw = load("PointsWithSplit").read()
        assert (len(raw.unsplit), len(raw.test)) == (30, 12)
        raw = TorchDataset("torch_datasets.PointsWithSplit", train_split="extra", val_split="train").read()
        assert (len(raw.unsplit), len(raw.val), len(raw.test)) == (9, 30, 12)

    def test_train_behind_kwargs_takes_precedence_over_split(self):
        raw = load("PointsWithKwargs", split="letters", num_examples=24).read()
        assert (len(raw.unsplit), len(raw.test)) == (24, 12)

    def test_a_dataset_without_splits_is_split_by_test_size(self):
        for path in ("Points", "make_points"):
            splits = TorchDataset(f"torch_datasets.{path}", test_size=6, val_size=3).load(0)
            assert (len(splits.train), len(splits.val), len(splits.test)) == (21, 3, 6)

    @pytest.mark.parametrize(
        ("path", "options", "message"),
        [
            ("PointsWithTrain", {"train": True}, r"its own value of 'train': leave it out"),
            ("PointsWithSplit", {"split": "train"}, r"its own value of 'split': leave it out .* train_split"),
            ("Points", {"root": "x"}, r"Points\(root='x'\) failed: .*'root'.* parameters are \['num_examples', "),
            ("PointsWithKwargs", {}, r"failed: .*'split'.* parameters are \['split', 'num_examples', 'train'\]"),
            ("missing", {}, "'torch_datasets.missing' does not lead to a class or function"),
        ],
    )
    def test_wrong_options_are_refused(self, path, options, message):
        with pytest.raises(ValueError, match=message):
            load(path, **options).read()

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match=r"PointsWithSplit\(split='dev'\) failed: Unknown split dev"):
            TorchDataset("torch_datasets.PointsWithSplit", test_split="dev").read()

    def test_datasets_of_other_splits_need_an_instance(self):
        with pytest.raises(ValueError, match="Use test_split and val_split"):
            TorchDataset("torch_datasets.Points", test=Points())
        with pytest.raises(ValueError, match="options are arguments for a dotted path"):
            TorchDataset(Points(), options={"num_examples": 3})

    def test_torchvision_datasets_are_read(self, tmp_path):
        pytest.importorskip("torchvision", exc_type=Exception, reason="torchvision is not installed, or broken")
        source = TorchDataset(
            "torchvision.datasets.FakeData", options={"size": 40, "image_size": [3, 6, 5], "num_classes": 2}
        )
        splits = source.load(0)
        assert splits.input_shape == (3, 6, 5)
        assert splits.train.inputs.dtype == torch.uint8
        with pytest.raises(ValueError, match=r"CIFAR10\(root=.*, train=True\) failed: Dataset not found"):
            TorchDataset("torchvision.datasets.CIFAR10", options={"root": str(tmp_path)}).read()


class TestInstances:
    def test_splits_are_given_as_datasets(self):
        raw = TorchDataset(Points(30), test=Points(12, seed=1), val=Points(9, seed=2)).read()
        assert (len(raw.unsplit), len(raw.val), len(raw.test)) == (30, 9, 12)
        assert load_test_split(TorchDataset(Points(30), test=Points(12, seed=1))).inputs.shape == (12, 4)

    def test_images_are_uint8_with_channels_first(self):
        dataset = Images()
        raw = TorchDataset(dataset).read()
        assert raw.unsplit.inputs.dtype == torch.uint8
        assert np.array_equal(raw.unsplit.inputs[3].numpy(), np.asarray(dataset.images[3]).transpose(2, 0, 1))
        assert raw.class_names == ("cat", "mouse")
        assert raw.feature_names == ()
        assert TorchDataset(Images(mode="L")).read().unsplit.inputs.shape == (20, 1, 6, 5)
        assert TorchDataset(Images(mode="P")).read().unsplit.inputs.shape == (20, 3, 6, 5)

    def test_grayscale_images_among_color_images_get_three_channels(self):
        dataset = Images(mixed=True)
        inputs = TorchDataset(dataset).read().unsplit.inputs
        assert inputs.shape == (20, 3, 6, 5)
        assert np.array_equal(inputs[0].numpy(), np.stack([np.asarray(dataset.images[0])] * 3))

    def test_tensors_keep_their_values(self):
        images = torch.rand(12, 3, 8, 8)
        raw = TorchDataset(TensorDataset(images, torch.arange(12) % 2)).read()
        assert torch.equal(raw.unsplit.inputs, images)
        assert raw.class_names == ("0", "1")

    def test_fractions_are_regression_targets(self):
        splits = TorchDataset(Points(targets="number")).load(0)
        assert splits.target_names == ("target",)
        assert torch.equal(splits.test.targets, splits.test.inputs[:, 0])
        assert TorchDataset(Points(targets="numbers")).load(0).target_names == ("target_0", "target_1")
        assert TorchDataset(Points(), task="regression").load(0).target_names == ("target",)

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Stream(), "train of Stream is a Stream without a length. Give a map-style dataset"),
            (Points(0), "train of Points has no examples"),
            (Images(sizes=(6, 7)), r"several shapes, such as \(3, 6, 5\) and \(3, 7, 5\).* transform"),
            (Images(mode="I"), r"more than 8 bits per pixel \(mode I\)"),
        ],
    )
    def test_other_items_are_refused(self, dataset, message):
        with pytest.raises(ValueError, match=message):
            TorchDataset(dataset).read()

    def test_dictionaries_with_labels_are_inputs_by_name(self):
        dataset = Dictionaries()
        raw = TorchDataset(dataset).read()
        assert torch.equal(raw.unsplit.inputs["image"], dataset.inputs)
        assert torch.equal(raw.unsplit.targets, dataset.targets)
        assert (raw.class_names, raw.feature_names) == (("0", "1", "2"), ())
        ragged = [{"ids": torch.arange(k), "labels": 0} for k in (2, 3)]
        with pytest.raises(ValueError, match="cannot be joined to a batch.*padding texts to one length"):
            TorchDataset(ragged).read()

    def test_class_names_are_those_of_the_attribute_classes(self):
        dataset = Points()
        for classes, expected in (
            (["a", "b", "c"], ("a", "b", "c")),
            ([("tench", "Tinca tinca"), ("goldfish",), ("shark",)], ("tench, Tinca tinca", "goldfish", "shark")),
            (["a", "b"], ("0", "1", "2")),
        ):
            dataset.classes = classes
            assert TorchDataset(dataset).read().class_names == expected

    def test_an_instance_cannot_be_saved(self):
        with pytest.raises(TypeError, match="cannot be written down as data .* dotted path of the class"):
            to_spec(TorchDataset(Points()))


class TestSpecs:
    def test_a_dotted_path_is_plain_data(self):
        source = TorchDataset("torch_datasets.PointsWithTrain", options={"num_examples": 24}, val_size=3)
        spec = json.loads(json.dumps(to_spec(source)))
        assert instantiate(spec) == source
        assert hash(instantiate(spec)) == hash(source)
        assert instantiate(spec, package="flatbayes.data", allowed_paths=["torch_datasets.PointsWithTrain"]) == source

    def test_specs_of_data_sources_are_unchanged(self):
        for path in ("torch_datasets.PointsSource", "flatbayes.data.Digits"):
            assert to_source_spec({"class_path": path}) == {"class_path": path}

    @pytest.mark.parametrize("allowed_paths", [(), ("torch_datasets.Points",)])
    def test_a_path_from_a_file_is_refused_unless_allowed(self, allowed_paths):
        for source in (load("PointsWithTrain"), ClassSplit(source=load("PointsWithTrain"))):
            with pytest.raises(ValueError, match=r"'torch_datasets.PointsWithTrain' is not part of flatbayes.data"):
                instantiate(to_spec(source), package="flatbayes.data", allowed_paths=allowed_paths)


def test_class_splits_of_torch_datasets():
    source = ClassSplit(source=load("PointsWithTrain"), classes=(2, 0))
    assert source.load(0).class_names == ("c", "a")
    assert source.read_ood().targets.unique().tolist() == [1]


def test_fit_trains_on_all_examples_of_a_dataset():
    dataset = Points(40)
    fitted = fit(MLP, dataset, MAP(), Plain(), TrainingConfig(epochs=2, batch_size=8))
    assert fitted.predict(dataset.inputs, num_draws=1).mean.shape == (40, 3)
    torch.testing.assert_close(fitted.transform.mean, dataset.inputs.mean(0))


class Augmented(Points):
    """Adds noise to every input, as random augmentation does."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn_like(x), y


READERS = {"read": lambda data: TorchDataset(data).read(), "fit": lambda data: fit_map(data)}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_random_inputs_of_a_dataset_are_noted(read):
    read(Points(24))
    torch.manual_seed(0)
    with pytest.warns(DataWarning, match=r"Item 0 of train of Augmented is another one.*a DataLoader"):
        read(Augmented(24))


def test_reading_items_again_changes_no_random_state():
    torch.manual_seed(0)
    for _ in range(24):
        torch.randn(4)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.warns(DataWarning, match="read again"):
        TorchDataset(Augmented(24)).read()
    assert torch.equal(torch.rand(1), expected)


def fit_map(data):
    return fit(MLP, data, MAP(), Plain(), TrainingConfig(epochs=1))


def test_names_of_classes_are_labels_of_all_splits():
    class Named(Dataset):
        def __init__(self, labels):
            self.labels = labels

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, k):
            return torch.full((2,), float(k)), self.labels[k]

    splits = TorchDataset(Named(["b", "c", "b", "c"]), val=Named(["c"]), test=Named(["a", "c"])).load(seed=0)
    assert splits.class_names == ("a", "b", "c")
    assert splits.train.targets.sort().values.tolist() == [1, 1, 2, 2]
    assert (splits.val.targets.tolist(), splits.test.targets.tolist()) == ([2], [0, 2])
    with pytest.raises(ValueError, match=r"needs at least 2 classes, got 1 \['b'\]"):
        TorchDataset(Named(["b"] * 9)).load(seed=0)
    with pytest.raises(ValueError, match="targets of train of Named"):
        TorchDataset(Named(["a", None, "b"])).load(seed=0)
