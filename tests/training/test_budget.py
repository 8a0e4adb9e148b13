"""The number of epochs that follows from a smallest number of epochs and of steps."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import MAP, Plain, fit
from flatbayes.data.checks import DataWarning
from flatbayes.estimators import FlatBayesRegressor
from flatbayes.experiments.run import MAX_HISTORY_EPOCHS, thin_records
from flatbayes.training import CollectionConfig, TrainingConfig
from flatbayes.training.arguments import resolve_config
from flatbayes.training.compatibility import count_snapshots
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.optimizers import strengthen_prior
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.schedules import is_collection_step

SHORT = TrainingConfig(min_epochs=3, min_steps=20, batch_size=16)


@pytest.mark.parametrize(
    ("rows", "epochs"), [(30, 3000), (200, 1000), (1150, 177), (3200, 60), (50_000, 60)], ids=lambda value: str(value)
)
def test_few_rows_get_more_epochs_and_many_rows_no_fewer(rows, epochs):
    config = TrainingConfig()
    steps_per_epoch = max(1, rows // config.batch_size)
    resolved = config.resolve_epochs(steps_per_epoch)
    assert resolved.num_epochs == epochs
    assert 10 <= count_snapshots(resolved, steps_per_epoch) <= 100


def test_explicit_epochs_are_those():
    config = TrainingConfig(epochs=2)
    assert config.resolve_epochs(1) is config
    assert resolve_config({"epochs": 3}).resolve_epochs(1).num_epochs == 3
    with pytest.raises(ValueError, match="epochs is None"):
        _ = TrainingConfig().num_epochs


@pytest.mark.parametrize("form", ["arrays", "loader", "estimator"])
def test_every_form_of_data_has_the_same_budget(form):
    x = torch.randn(50, 3)
    y = x[:, 0] + 0.1 * torch.randn(50)
    if form == "estimator":
        estimator = FlatBayesRegressor(MAP(), Plain(), config=SHORT, random_state=0).fit(x.numpy(), y.numpy())
        assert estimator.n_iter_ == 7
        return
    data = (x, y)
    if form == "loader":
        data = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, drop_last=True)
    with pytest.warns(DataWarning, match="There are no validation examples"):
        fitted = fit(nn.Linear(3, 2), data, MAP(), Plain(), SHORT)
    assert fitted.info["training"]["epochs"] == 7  # 3 steps an epoch, and at least 20
    assert fitted.info["cost"]["gradients"] == 21


def test_fewer_than_one_snapshot_per_epoch_ends_with_the_last_step():
    config = TrainingConfig(epochs=11, collection=CollectionConfig(0.0, 0.5))
    assert [step + 1 for step in range(22) if config.is_collection_step(step, 2)] == [2, 6, 10, 14, 18, 22]
    assert [is_collection_step(step, 7, 14, 0.0, 3) for step in range(7)] == [
        bool((step + 1) * 3 // 7 > step * 3 // 7) for step in range(7)
    ]
    assert CollectionConfig(snapshots_per_epoch=2.0) == CollectionConfig(snapshots_per_epoch=2)
    with pytest.raises(ValueError, match="snapshots_per_epoch must be positive"):
        CollectionConfig(snapshots_per_epoch=0)


def test_the_history_of_thousands_of_epochs_is_thinned():
    records = [{"epoch": k, "loss": 1.0} | ({"val_nll": 1.0} if k % 1500 == 0 else {}) for k in range(1, 3001)]
    thin = thin_records(records)
    assert len(thin) <= MAX_HISTORY_EPOCHS + 2
    assert [record["epoch"] for record in thin if "val_nll" in record] == [1500, 3000]
    assert thin_records(records[:1000]) == records[:1000]


def test_tables_with_default_options_have_a_prior_for_few_examples_and_a_lower_learning_rate():
    def get_options(targets, inputs, **options):
        config = TrainingConfig(**{"min_epochs": 1, "min_steps": 1} | options)
        factory, _ = prepare_runs(
            nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), (inputs, targets), MAP(), Plain(), config
        )
        optimizer = factory.create_run([0], make_fabric(config)).leader.init_state(nn.Linear(3, 2)).optimizer
        return optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[0]["lr"]

    inputs = torch.randn(100, 3)
    classes, numbers = torch.arange(100) % 2, torch.randn(100)
    assert get_options(classes, inputs) == get_options(numbers, inputs) == (2 / 85, 0.03)  # 15 are held out
    assert get_options(classes, inputs[:, :, None]) == (2 / 85, 0.1)
    assert get_options(classes, inputs, epochs=1) == (5e-4, 0.1)
    own = partial(torch.optim.SGD, lr=0.1, weight_decay=1e-3)
    assert get_options(classes, inputs, optimizer=own) == (1e-3, 0.1)
    adam = partial(torch.optim.Adam, lr=1e-3)
    assert strengthen_prior(adam, 0.1) is adam
    assert strengthen_prior(own, 1e-4).keywords["weight_decay"] == 1e-3
