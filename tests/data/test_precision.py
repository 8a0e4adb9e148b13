"""Numbers keep their float64 precision until they are centred and scaled, whatever reads them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from flatbayes import MAP, MLP, Plain, TrainingConfig, fit
from flatbayes.data import UCI, Npz, Standardize, Table, TorchDataset, load_training_splits, read_inputs
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.likelihoods import Custom, Gaussian
from flatbayes.prediction import FittedPosterior

SECONDS = 1.7e9 + np.arange(60.0)  # steps of float32 are 128
LABELS = (np.arange(60) > 29).astype(int)


def write_csv(folder, targets):
    lines = [f"{int(seconds)},{target!r}" for seconds, target in zip(SECONDS, targets.tolist(), strict=True)]
    (folder / "t.csv").write_text("\n".join(["t,y", *lines]))
    return Table(path=str(folder / "t.csv"), target="y")


def write_parquet(folder, targets):
    pq.write_table(pa.table({"t": SECONDS.astype(np.int64), "y": targets}), folder / "t.parquet")
    return Table(path=str(folder / "t.parquet"), target="y")


def write_npz(folder, targets, inputs=SECONDS):
    np.savez(folder / "t.npz", x=inputs[:, None], y=targets)
    return Npz(path=str(folder / "t.npz"))


def write_uci(folder, targets):
    folder = folder / "times"
    folder.mkdir()
    np.savetxt(folder / "data.txt", np.stack([SECONDS, targets], 1), fmt="%.10g")
    for name, rows in {"features": [0], "target": [1], "train_0": range(40), "test_0": range(40, 60)}.items():
        np.savetxt(folder / f"index_{name}.txt", list(rows), fmt="%d")
    (folder / "n_splits.txt").write_text("1")
    return UCI(name="times", root=str(folder.parent))


def make_torch_dataset(folder, targets):
    return TorchDataset(TensorDataset(torch.from_numpy(SECONDS)[:, None], torch.from_numpy(targets)))


READERS = [
    write_csv,
    write_parquet,
    write_npz,
    lambda folder, targets: write_npz(folder, targets, SECONDS.astype(np.int64)),
    make_torch_dataset,
]


@pytest.mark.parametrize("make", READERS)
def test_close_times_stay_different_features(tmp_path, make):
    train = make(tmp_path, LABELS).load(0).train
    standardized = Standardize.fit(train.inputs)(train.inputs)
    assert standardized.dtype == torch.float32
    assert len(standardized.unique()) == len(train)
    assert standardized.mean().abs() < 1e-6
    assert standardized.std(correction=0) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("make", [*READERS, write_uci])
def test_close_times_stay_different_targets(tmp_path, make):
    targets = make(tmp_path, SECONDS + 0.25).load(0).train.targets
    assert len(targets.unique()) == len(targets)
    likelihood = Gaussian.fit(targets)
    outputs = torch.zeros(len(targets), 2, requires_grad=True)  # the mean, and std log(2) + floor
    loss = likelihood.loss(outputs, targets)
    std = np.log(2) + 0.01
    expected = np.log(likelihood.scale[0]) + np.log(std) + 0.5 * np.log(2 * np.pi) + 0.5 / std**2
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_loss_of_the_user_gets_targets_in_the_precision_of_the_outputs():
    dtypes = []

    def loss(outputs, targets):
        dtypes.append(targets.dtype)
        return (outputs[:, 0] - targets).square().mean()

    Custom(loss, Gaussian()).loss(torch.zeros(3, 2), torch.ones(3, dtype=torch.float64))
    assert dtypes == [torch.float32]


def test_a_fit_saved_and_loaded_predicts_from_float64(tmp_path):
    splits = load_training_splits(TensorDataset(torch.from_numpy(SECONDS)[:, None], torch.from_numpy(LABELS)))
    fitted = fit(MLP, splits, MAP(), Plain(), TrainingConfig(epochs=20, batch_size=10, num_validations=0))
    again = FittedPosterior.load(fitted.save(tmp_path))
    (tmp_path / "new.csv").write_text("t\n" + "\n".join(str(int(seconds)) for seconds in SECONDS))
    [(_, inputs)] = read_inputs(tmp_path / "new.csv", (1,), ("t",))
    predicted = again.predict(inputs).mean.argmax(1)
    assert (predicted == torch.from_numpy(LABELS)).double().mean() > 0.9
    assert torch.equal(again.predict(inputs).mean, fitted.predict(SECONDS[:, None]).mean)
    compiled = fitted.compile(1)
    assert compiled.example.dtype == torch.float64  # exported networks take it too
    torch.testing.assert_close(compiled(inputs)["mean"].double(), fitted.predict(inputs, 1).mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", [FlatBayesClassifier, FlatBayesRegressor])
def test_estimators(estimator):
    targets = LABELS if estimator is FlatBayesClassifier else SECONDS
    model = estimator(MAP(), Plain(), hidden=(8,), epochs=30, batch_size=10, random_state=0)
    assert model.fit(SECONDS[:, None], targets).score(SECONDS[:, None], targets) > 0.9


@pytest.mark.parametrize(("offset", "dtype"), [(0, torch.float32), (1e9, torch.float64)])
def test_images_far_from_zero(tmp_path, offset, dtype):
    images = offset + np.random.default_rng(0).normal(size=(20, 4, 4))
    np.savez(tmp_path / "t.npz", x=images, y=np.arange(20) % 2)
    inputs = Npz(path=str(tmp_path / "t.npz")).load(0).train.inputs
    assert inputs.dtype == dtype
    assert len(Standardize.fit(inputs)(inputs).unique()) > 0.99 * inputs.numel()
