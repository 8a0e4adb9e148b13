"""Labels of new examples by the names of the classes, which may be numbers."""

import numpy as np
import pytest
import torch

from flatbayes.likelihoods.labels import encode_labels


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (np.array([1, 2, 1]), ["1", "2", "3"], [0, 1, 0]),
        (np.array([1.0, 3.0]), ["1", "2", "3"], [0, 2]),
        ([2, 1, -100], ("1", "2"), [1, 0, -100]),
        (np.array([[3], [7]]), ["3", "7"], [[0], [1]]),
        (np.array([1.5, 0.5]), ["0.5", "1.5"], [1, 0]),
        (np.array([0, 2]), ["1", "2", "3"], [0, 2]),
        (np.array([0, 2]), ["0", "1", "2"], [0, 2]),
        (np.array([1, 0]), ["no", "yes"], [1, 0]),
        (np.array([[1, 0], [0, 1]]), ["1", "0"], [[1, 0], [0, 1]]),
        (torch.tensor([1, 2]), ["1", "2", "3"], [1, 2]),
        (np.array([1, 2]), None, [1, 2]),
        (np.array([True, False], dtype=object), ["0", "1"], [1, 0]),
        (np.array([True, False], dtype=object), ["False", "True"], [1, 0]),
    ],
)
def test_numbers_are_names_where_all_of_them_are(labels, names, indices):
    assert encode_labels(labels, names).tolist() == indices


def test_texts_without_names_of_classes_are_refused_with_what_to_pass():
    with pytest.raises(ValueError, match=r"texts, such as '1\.5'.*class indices.*astype\(float\)"):
        encode_labels(["1.5", "2.5"], None)
