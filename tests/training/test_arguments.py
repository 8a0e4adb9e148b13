"""Names, classes and mappings where `fit` and others take instances, and arguments of 0.1."""

import importlib
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from flatbayes import ASAM, MAP, SAM, SWAG, Cosine, TrainingConfig, fit, fit_together
from flatbayes.core.components import resolve_component
from flatbayes.core.names import find_similar, list_classes
from flatbayes.core.renames import RENAMED_ARGUMENTS, RENAMED_PARAMETERS
from flatbayes.data import Digits
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.experiments import Comparison, Method
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP
from flatbayes.posteriors import Posterior
from flatbayes.training.arguments import resolve_checkpoints
from flatbayes.training.callbacks.callback import CallbackList

OPTIONS = {"epochs": 2, "collection": {"start_fraction": 0.0}}


@pytest.fixture(scope="module")
def data():
    return Digits(train_size=60).load(seed=0)


@pytest.fixture(scope="module")
def expected(data):
    config = TrainingConfig().with_options(**OPTIONS)
    return fit(MLP, data, SWAG(), ASAM(), config).predict(data.test.input_tensor[:4], 2).mean


@pytest.mark.parametrize(
    ("model", "posterior", "flatness", "likelihood"),
    [("mlp", "swag", "asam", "categorical"), (MLP, SWAG, ASAM, Categorical), (partial(MLP), SWAG(), "ASAM", None)],
)
def test_fit_takes_names_and_classes(data, expected, model, posterior, flatness, likelihood):
    fitted = fit(model, data, posterior, flatness, OPTIONS, likelihood=likelihood)
    assert torch.equal(fitted.predict(data.test.input_tensor[:4], 2).mean, expected)


def test_fit_loads_a_source(expected, data):
    fitted = fit("MLP", Digits(train_size=60), "SWAG", ASAM, OPTIONS)
    assert torch.equal(fitted.predict(data.test.input_tensor[:4], 2).mean, expected)


class NeedsWidth(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()


SGD = partial(torch.optim.SGD, lr=0.1)
REFUSED = [
    ({"posterior": SAM(), "flatness": SWAG()}, "posterior must be a Posterior .* got SAM, which is a flatness"),
    ({"posterior": SAM}, "got SAM, which is a flatness"),
    ({"flatness": "SWAG"}, "Unknown flatness 'SWAG'"),
    ({"flatness": MAP}, "got MAP, which is a posterior"),
    ({"posterior": "SWGA"}, r"Unknown posterior 'SWGA'\. Did you mean SWAG\?"),
    ({"posterior": "Point"}, "Point was renamed to MAP"),
    ({"posterior": None}, "None: leave it out"),
    ({"posterior": 3}, "got 3, of the type int"),
    ({"model": "mpl"}, "Unknown model 'mpl'. Did you mean MLP?"),
    ({"model": NeedsWidth}, "NeedsWidth needs width .*functools.partial"),
    (
        {"model": partial(MLP, hiden=(4,))},
        r"MLP has no argument hiden\. Did you mean hidden\? Its arguments",
    ),
    ({"config": {"epoch": 3}}, "has no option epoch"),
    ({"config": 3}, r"config must be a TrainingConfig such as TrainingConfig\(epochs=10\), or a mapping"),
    ({"likelihood": "gaussian"}, r"likelihood must be an instance .*these data suggest Categorical"),
    ({"data": "digits"}, r"Write Digits\(\).load\(seed=0\)"),
    ({"recipe": 3}, "fit has no argument 'recipe': it was renamed to config in 0.2."),
    ({"watch": 3}, "it was renamed to callback"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[str(arguments) for arguments, _ in REFUSED])
def test_fit_explains_what_it_does_not_understand(data, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit(**{"model": MLP, "data": data, "config": OPTIONS, **arguments})


def test_optimizers_and_schedules_by_name_and_class():
    assert TrainingConfig(optimizer="adam", schedule="cosine") == TrainingConfig(
        optimizer=torch.optim.Adam, schedule=Cosine
    )
    assert TrainingConfig(schedule=Cosine).schedule == Cosine()
    made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    with pytest.raises(TypeError, match=r"partial\(torch.optim.SGD, lr=0.3\)"):
        TrainingConfig(optimizer=made)
    with pytest.raises(ValueError, match="Did you mean Adam"):
        TrainingConfig(optimizer="adamm")
    with pytest.raises(TypeError, match="a class such as torch.optim.SGD"):
        TrainingConfig(optimizer=0.1)


@pytest.mark.parametrize(("base", "role"), [(Posterior, "posterior"), (Flatness, "flatness")])
def test_every_method_is_found_by_its_name(base, role):
    package = importlib.import_module({"posterior": "flatbayes.posteriors", "flatness": "flatbayes.flatness"}[role])
    for name, kind in list_classes(package, base).items():
        for value in (name, name.lower(), kind, kind()):
            assert resolve_component(value, base, role) == kind()


def test_components_inside_others():
    # those of Ensemble, Periodic and Delayed too, whose types the tests check before they can
    assert Method("map", SAM) == Method(MAP(), SAM())
    comparison = Comparison(Digits(), "mlp", ["map", SWAG], "asam", {"epochs": 3})
    expected = Comparison(Digits(), MLP, [MAP(), SWAG()], ASAM(), TrainingConfig(epochs=3))
    assert comparison == expected
    with pytest.raises(TypeError, match="SAM, which is a flatness"):
        Method(SAM())


@pytest.mark.parametrize("estimator", [FlatBayesClassifier, FlatBayesRegressor])
def test_estimators_take_names(estimator, data):
    inputs, targets = data.train.input_tensor.flatten(1).numpy()[:20], data.train.targets.numpy()[:20]
    fitted = estimator("map", SAM, config={"epochs": 1}).fit(inputs, targets)
    assert (fitted.posterior_.posterior, fitted.n_iter_) == (MAP(), 1)
    assert estimator("swag").set_params(posterior__rank=3).posterior == SWAG(rank=3)
    with pytest.raises(TypeError, match="which is a flatness"):
        estimator(SAM()).fit(inputs, targets)


@pytest.mark.parametrize("path", [*RENAMED_ARGUMENTS, *RENAMED_PARAMETERS])
def test_arguments_of_0_1_are_answered_with_the_new_name(path):
    package, _, name = path.rpartition(".")
    target = getattr(importlib.import_module(package), name)
    for old, new in {**RENAMED_ARGUMENTS, **RENAMED_PARAMETERS}[path].items():
        assert new.rpartition(".")[2] in inspect.signature(target).parameters or "." in new
        if old != new.partition(".")[0]:
            with pytest.raises(
                TypeError, match=rf"{name} has no argument '{old}'.*{new.rpartition('.')[2]}.* in 0.2"
            ):
                target(**{old: None})


def test_similar_names():
    assert find_similar("SWGA", ["SWAG", "SGVB", "MAP"]) == ["SWAG"]
    assert find_similar("num-draw", ["num_draws", "num_seeds"]) == ["num_draws"]
    assert find_similar("nonsense", ["SWAG", "DenseNet"]) == []


DATA = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)


def test_targets_beside_the_inputs_are_explained():
    message = r"posterior.* must be a Posterior.*got a Tensor: .*the pair \(inputs, targets\)"
    for call in (lambda: fit("MLP", *DATA), lambda: fit_together("MLP", DATA[0], [DATA[1]])):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("convert", [str, Path])
def test_checkpoints_may_be_the_path_of_their_folder(tmp_path, convert):
    fit("MLP", DATA, MAP(), config={"epochs": 1}, checkpoints=convert(tmp_path / "one"))
    fit_together("MLP", DATA, [MAP(), SWAG()], config={"epochs": 8}, checkpoints=convert(tmp_path / "two"))
    assert all(any((tmp_path / name).iterdir()) for name in ("one", "two"))
    with pytest.raises(TypeError, match="checkpoints must be the path of a folder or Checkpoints"):
        resolve_checkpoints(3)


def test_a_callback_of_another_class_is_refused():
    class Own:
        def on_epoch_end(self, record):
            pass

    with pytest.raises(TypeError, match=r"subclass of flatbayes.training.Callback"):
        CallbackList([Own()])


@pytest.mark.parametrize(
    ("name", "words"), [("lr", "option of the optimizer"), ("device", "distribution.accelerator")]
)
def test_options_of_other_libraries_are_explained(name, words):
    with pytest.raises(ValueError, match=rf"no option {name}; .*{words}"):
        fit("MLP", DATA, MAP(), config={"epochs": 1, name: 3})
