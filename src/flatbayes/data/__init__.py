"""Where examples come from, how they are split, and where predictions go."""

from flatbayes.data.augment import Augment
from flatbayes.data.cifar10 import CIFAR10
from flatbayes.data.cifar10c import CIFAR10C
from flatbayes.data.cifar100 import CIFAR100
from flatbayes.data.class_split import ClassSplit
from flatbayes.data.corruptions import CORRUPTIONS, corrupt, corruptions_for, white_of
from flatbayes.data.dataset import Dataset, Part
from flatbayes.data.diabetes import Diabetes
from flatbayes.data.digits import Digits
from flatbayes.data.image_folder import ImageFolder
from flatbayes.data.image_parquet import ImageParquet
from flatbayes.data.imagenet import ImageNet, TinyImageNet
from flatbayes.data.inputs import NewInputs, read_inputs
from flatbayes.data.mnist import KMNIST, MNIST, FashionMNIST
from flatbayes.data.npz import Npz
from flatbayes.data.open import reader_for, source_for
from flatbayes.data.outputs import PredictionWriter
from flatbayes.data.shift import held_out, outside_inputs, shaped_like
from flatbayes.data.source import Raw, Source
from flatbayes.data.standardize import Standardize
from flatbayes.data.stl10 import STL10
from flatbayes.data.stored import StoredImages
from flatbayes.data.svhn import SVHN
from flatbayes.data.table import Table
from flatbayes.data.uci import UCI

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR100",
    "CORRUPTIONS",
    "KMNIST",
    "MNIST",
    "STL10",
    "SVHN",
    "UCI",
    "Augment",
    "ClassSplit",
    "Dataset",
    "Diabetes",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet",
    "ImageParquet",
    "NewInputs",
    "Npz",
    "Part",
    "PredictionWriter",
    "Raw",
    "Source",
    "Standardize",
    "StoredImages",
    "Table",
    "TinyImageNet",
    "corrupt",
    "corruptions_for",
    "held_out",
    "outside_inputs",
    "read_inputs",
    "reader_for",
    "shaped_like",
    "source_for",
    "white_of",
]
