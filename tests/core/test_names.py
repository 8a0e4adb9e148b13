"""Numbers in messages agree with their nouns and verbs."""

import pytest
import torch

from flatbayes.core.names import format_count
from flatbayes.data.checks import DataWarning
from flatbayes.data.image_folder import warn_of_other_files
from flatbayes.likelihoods import Categorical


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, "seed"), "0 seeds"),
        ((1, "seed"), "1 seed"),
        ((2, "class", "classes"), "2 classes"),
        ((1, "file is", "files are"), "1 file is"),
        ((0, "file is", "files are"), "0 files are"),
        ((1200, "weight", "", ","), "1,200 weights"),
        ((1.0, "epoch", "", "g"), "1 epoch"),
        ((1.5, "epoch", "", "g"), "1.5 epochs"),
    ],
)
def test_counts_agree_with_their_nouns(arguments, text):
    assert format_count(*arguments) == text


@pytest.mark.parametrize(
    ("names", "verb"), [(["a.txt"], "1 file in .* is"), (["a.txt", "b.txt"], "2 files in .* are")]
)
def test_verbs_of_warnings_agree_with_their_counts(tmp_path, names, verb):
    with pytest.warns(DataWarning, match=rf"{verb} left out \(hidden\): a.txt"):
        warn_of_other_files(tmp_path, [tmp_path / name for name in names], "hidden")


@pytest.mark.parametrize(("num_examples", "count"), [(1, "1 example"), (2, "2 examples")])
def test_reprs_agree_with_the_number_of_examples(num_examples, count):
    predictive = Categorical(2).predictive(torch.zeros(1, num_examples, 2))
    assert repr(predictive) == f"<CategoricalPredictive: {count}, 2 classes>"
