"""Where examples come from, how they are split, and where predictions go."""

from flatbayes.data.augment import Augment
from flatbayes.data.cifar10 import CIFAR10
from flatbayes.data.dataset import Dataset, Part
from flatbayes.data.digits import Digits
from flatbayes.data.image_folder import ImageFolder
from flatbayes.data.image_parquet import ImageParquet
from flatbayes.data.inputs import read_inputs
from flatbayes.data.npz import Npz
from flatbayes.data.open import reader_for, source_for
from flatbayes.data.outputs import PredictionWriter
from flatbayes.data.source import Raw, Source
from flatbayes.data.standardize import Standardize
from flatbayes.data.table import Table

__all__ = [
    "CIFAR10",
    "Augment",
    "Dataset",
    "Digits",
    "ImageFolder",
    "ImageParquet",
    "Npz",
    "Part",
    "PredictionWriter",
    "Raw",
    "Source",
    "Standardize",
    "Table",
    "read_inputs",
    "reader_for",
    "source_for",
]
