"""Data sources, splits, augmentation, corruptions, and files of inputs and predictions."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.data.augment import Augment
from flatbayes.data.checks import DataWarning
from flatbayes.data.cifar import CIFAR10, CIFAR100
from flatbayes.data.cifar10c import CIFAR10C
from flatbayes.data.class_split import ClassSplit
from flatbayes.data.corruptions import CORRUPTIONS, corrupt_images, infer_white_value, list_corruptions
from flatbayes.data.image_folder import ImageFolder
from flatbayes.data.image_parquet import ImageParquet
from flatbayes.data.imagenet import ImageNet, TinyImageNet
from flatbayes.data.in_memory import Arrays, FixedSplits
from flatbayes.data.inputs import InputReader, read_inputs
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.npz import Npz
from flatbayes.data.ood import load_ood_inputs, load_test_split, match_input_format
from flatbayes.data.pairs import is_array_pair
from flatbayes.data.prediction_writer import PredictionWriter
from flatbayes.data.readers import find_reader, load_training_splits, make_source
from flatbayes.data.sklearn_datasets import Diabetes, Digits
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import DataSplits, Split
from flatbayes.data.standardize import Standardize
from flatbayes.data.table import Table
from flatbayes.data.torch_dataset import TorchDataset
from flatbayes.data.uci import UCI

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR100",
    "CORRUPTIONS",
    "UCI",
    "Arrays",
    "Augment",
    "ClassSplit",
    "DataSource",
    "DataSplits",
    "DataWarning",
    "Diabetes",
    "Digits",
    "FixedSplits",
    "ImageFolder",
    "ImageNet",
    "ImageParquet",
    "InputReader",
    "LazyImages",
    "Npz",
    "PredictionWriter",
    "RawSplits",
    "Split",
    "Standardize",
    "Table",
    "TinyImageNet",
    "TorchDataset",
    "corrupt_images",
    "find_reader",
    "infer_white_value",
    "is_array_pair",
    "list_corruptions",
    "load_ood_inputs",
    "load_test_split",
    "load_training_splits",
    "make_source",
    "match_input_format",
    "read_inputs",
]

explain_old_arguments(__name__)
