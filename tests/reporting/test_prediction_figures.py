"""Names in the figures of predictions do not cover each other."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from flatbayes.plotting.predictions import plot_label_probabilities, plot_uncertain

NAMES = ["golden retriever", "Labrador retriever", "cat", "aeroplane, aircraft", "x"]


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def make_probs(num_examples=30):
    probs = np.random.default_rng(0).dirichlet(np.full(len(NAMES), 0.7), num_examples)
    return probs, -(probs * np.log(probs)).sum(1)


@pytest.mark.parametrize("num_axes", [1, 3])
def test_names_of_classes_stay_in_their_bars(num_axes):
    import matplotlib.pyplot as plt

    axes = None if num_axes == 1 else plt.subplots(1, num_axes)[1][0]
    axes = plot_uncertain(*make_probs(), NAMES, axes=axes)
    axes.get_figure(root=True).draw_without_rendering()
    bars = [bar.get_window_extent() for bar in axes.patches]
    assert len(axes.texts) == len(bars) == 24
    for text, bar in zip(axes.texts, bars, strict=True):
        if text.get_text():
            extent = text.get_window_extent()
            assert bar.x0 - 1 <= extent.x0 <= extent.x1 <= bar.x1 + 1
    shown = {text.get_text() for text in axes.texts}
    assert any(name.endswith("…") for name in shown)
    assert shown & {"cat", "x"}


def test_long_names_of_labels_are_slanted():
    axes = plot_label_probabilities(*make_probs(), NAMES)
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {30.0}
    axes = plot_label_probabilities(*make_probs(), ["a", "b", "c", "d", "e"])
    axes.get_figure(root=True).draw_without_rendering()
    extents = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))
