"""Every public object has a display: a short repr, a table in notebooks, a summary, plain data and a figure."""

import json
import os
import subprocess
import sys
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from figure_checks import check_figure
from flatbayes import MLP, SAM, SWAG, Bernoulli, Diabetes, Digits, Ensemble, FittedPosterior, evaluate, fit
from flatbayes.diagnostics import LossGrid, LossSlice, SharpnessConfig, measure_posterior_sharpness
from flatbayes.plotting import theme

mpl.use("Agg")
CONFIG = {"epochs": 3, "batch_size": 20}
MAX_LINES = 12


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def objects():
    """Objects of a classification and of a regression, by name."""
    digits, diabetes = Digits(train_size=40).load(seed=0), Diabetes(train_size=60).load(seed=0)
    fitted = fit(partial(MLP, hidden=(8,)), digits, SWAG(rank=2), SAM(rho=0.1), CONFIG)
    regression = fit(partial(MLP, hidden=(8,)), diabetes, Ensemble(size=2), config=CONFIG)
    sharpness = measure_posterior_sharpness(
        fitted, digits.train.inputs, digits.train.targets, SharpnessConfig(ascent_steps=2), num_draws=3
    )
    return {
        "splits": digits,
        "split": digits.train,
        "fitted": fitted,
        "fitted regression": regression,
        "compiled": fitted.compile(num_draws=3),
        "predictive": fitted.predict(digits.test.inputs, 3),
        "predictive regression": regression.predict(diabetes.test.inputs, 3),
        "evaluation": evaluate(fitted, digits.test, num_draws=3),
        "evaluation regression": evaluate(regression, diabetes.test, num_draws=3),
        "sharpness": sharpness,
        "slice": LossSlice((-1.0, 0.0, 1.0), (2.0, 1.0, 2.0)),
        "grid": LossGrid((0.0, 1.0), (0.0, 1.0), ((1.0, 2.0), (3.0, 4.0)), {"a": (0.5, 0.5, 0.1)}, {}),
    }


NAMES = (
    *(
        "splits",
        "split",
        "fitted",
        "fitted regression",
        "compiled",
        "predictive",
        "predictive regression",
        "evaluation",
    ),
    *("evaluation regression", "sharpness", "slice", "grid"),
)


@pytest.mark.parametrize("name", NAMES)
def test_reprs_are_short_and_hold_no_tensors(objects, name):
    text = repr(objects[name])
    assert len(text.splitlines()) < MAX_LINES
    assert len(text) < 300
    assert "tensor(" not in text


@pytest.mark.parametrize("name", sorted({*NAMES} - {"compiled", "split", "slice", "grid"}))
def test_notebooks_show_a_table(objects, name):
    html = objects[name]._repr_html_()
    assert html.startswith("<div><table>")
    assert html.count("<tr>") == html.count("</tr>") > 1


@pytest.mark.parametrize("name", sorted({*NAMES} - {"compiled", "split", "splits", "slice", "grid"}))
def test_summaries_have_a_line_for_each_entry(objects, name):
    assert len(objects[name].summary().splitlines()) > 2


def test_a_summary_says_what_was_fitted_to_what(objects, tmp_path):
    text = objects["fitted"].summary()
    assert "not run: fitted.check(data.val)" in text
    for expected in ("SWAG(rank=2)", "SAM(rho=0.1)", "MLP(hidden=[8]) with 610 weights", "40 training examples",
                     "10 classes", "3 epochs", "12 gradients", "val_accuracy", "any number of draws"):  # fmt: skip
        assert expected in text
    assert "2 networks" in objects["fitted regression"].summary()
    objects["fitted"].save(tmp_path)
    assert FittedPosterior.load(tmp_path).summary() == text


def test_a_summary_of_an_old_artefact_leaves_out_what_it_does_not_have(objects):
    fitted = objects["fitted"]
    old = FittedPosterior(
        fitted.posterior, fitted.states, fitted.likelihood, info={"model": {"class_path": "gone.Net"}}
    )
    assert "Net with 610 weights" in old.summary()
    assert "flatness    unknown" in old.summary()
    broken = FittedPosterior(fitted.posterior, fitted.states, fitted.likelihood, info={"training": 3, "cost": [1]})
    assert "SWAG(rank=2)" in repr(broken)


@pytest.mark.parametrize("name", ["predictive", "predictive regression"])
def test_predictions_become_tables_and_plain_data(objects, name):
    predictive = objects[name]
    frame, data = predictive.to_pandas(), predictive.to_dict()
    assert len(frame) == len(predictive.mean)
    assert list(frame.columns) == list(data)
    json.dumps(data)


def test_selected_predictions_are_those_of_the_rows(objects):
    for name in ("predictive", "predictive regression"):
        predictive = objects[name]
        assert torch.equal(predictive.select(torch.tensor([3, 1])).mean, predictive.mean[[3, 1]])
        assert len(predictive.select(predictive.entropy > predictive.entropy.median()).mean) < len(predictive.mean)


def test_evaluations_become_tables_and_plain_data(objects):
    evaluation = objects["evaluation"]
    assert evaluation.to_pandas().loc[0].to_dict() == evaluation.metrics
    assert json.loads(json.dumps(evaluation.to_dict()))["metrics"] == evaluation.metrics
    assert objects["sharpness"].to_pandas()["measure"].tolist() == list(objects["sharpness"].trained[0])


def test_figures_have_titles_labels_and_legends_where_they_need_some(objects):
    digits, diabetes = Digits(train_size=40).load(seed=0), Diabetes(train_size=60).load(seed=0)
    figures = {
        "uncertain": objects["predictive"].plot(digits.test.inputs, digits.test.targets),
        "uncertain without images": objects["predictive"].plot(),
        "band": objects["predictive regression"].plot(targets=diabetes.test.targets),
        "band over an input": objects["predictive regression"].plot(diabetes.test.inputs[:, 2]),
        "reliability": objects["evaluation"].plot_reliability(),
        "coverage": objects["evaluation regression"].plot_reliability(),
        "sharpness": objects["sharpness"].plot(),
        "slice": objects["slice"].plot(),
        "grid": objects["grid"].plot(),
    }
    for axes in figures.values():
        check_figure(axes.figure)
    assert len(figures["uncertain"].child_axes) == 8  # images
    assert not figures["uncertain without images"].child_axes
    assert figures["band"].get_legend() is not None
    assert figures["sharpness"].get_legend() is not None


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist, lambda values: pd.Series(values.numpy())])
def test_figures_take_what_predict_and_evaluate_take(objects, kind):
    digits, diabetes = Digits(train_size=40).load(seed=0), Diabetes(train_size=60).load(seed=0)
    band = objects["predictive regression"].plot(kind(diabetes.test.inputs[:, 2]), kind(diabetes.test.targets))
    assert len(band.lines) == 2  # mean and observed targets
    given = objects["predictive"].plot(targets=kind(digits.test.targets))
    words = [f"digit {k}" for k in range(10)]
    named = objects["predictive"].plot(targets=[words[k] for k in digits.test.targets], names=np.array(words))
    expected = [label.get_text().replace(": ", ": digit ") for label in given.get_yticklabels()]
    assert [label.get_text() for label in named.get_yticklabels()] == expected
    with pytest.raises(ValueError, match="'seven' is not the name of a class"):
        objects["predictive"].plot(targets=["seven"], names=words)


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.float])
def test_the_figure_of_several_labels_has_their_probabilities_and_frames_the_true_ones(kind):
    generator = torch.Generator().manual_seed(0)
    predictive = Bernoulli(3).predictive(torch.randn(4, 20, 3, generator=generator))
    targets = (torch.rand(20, 3, generator=generator) > 0.5).long()
    axes = predictive.plot(torch.rand(20, 1, 4, 4), kind(targets), names=["red", "round", "wooden part"])
    check_figure(axes.figure)
    assert len(axes.child_axes) == 8
    rows = predictive.entropy.argsort(descending=True)[:8]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(row) for row in rows.tolist()]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{prob:.2f}" for prob in predictive.mean[rows].flatten().tolist()]
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    assert len(frames) == int(targets[rows].sum())
    _, given = plt.subplots()
    assert predictive.plot(ax=given, num_examples=2) is given
    assert len(given.texts) == 6


def test_figures_are_drawn_into_given_axes(objects):
    _, axes = plt.subplots()
    assert objects["predictive"].plot(ax=axes) is axes
    assert objects["evaluation"].plot_reliability(ax=axes) is axes
    assert objects["sharpness"].plot(ax=axes) is axes
    assert len(plt.get_fignums()) == 1


NOTEBOOK_BACKEND = """
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvas

matplotlib.interactive(True)
"""
SHOW_FIGURE = """
import runpy, sys, matplotlib

with runpy.run_path(sys.argv[1])["use_axes"](None, 3, 3) as axes:
    assert not axes.spines["top"].get_visible()
assert matplotlib.is_interactive()
"""


def test_figures_leave_on_what_the_backend_of_a_notebook_switches_on(tmp_path):
    """It is loaded with the first figure, and sets `interactive`: without it later figures are not shown."""
    (tmp_path / "notebook_backend.py").write_text(NOTEBOOK_BACKEND)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MPLBACKEND": "module://notebook_backend"}
    command = [sys.executable, "-c", SHOW_FIGURE, theme.__file__]
    subprocess.run(command, env=environment, check=True, timeout=60)
