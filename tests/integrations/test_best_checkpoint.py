"""The best checkpoint is loaded with the statistics of the posterior, which are those of its weights."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flatbayes import MAP, SGVB, SWAG, Categorical, Plain
from support import LIGHTNING_WARNINGS

lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from flatbayes.integrations.lightning import FlatCallback  # noqa: E402
from flatbayes.integrations.tracker_config import TRACKER_FILE_NAME, load_tracker_state  # noqa: E402
from flatbayes.integrations.transformers import FlatTrainer  # noqa: E402

pytestmark = LIGHTNING_WARNINGS
EPOCHS, STEPS = 5, 2
OTHER_WEIGHTS = "weights of the network have been changed since the end of training"


class Module(lightning.LightningModule):
    def __init__(self, best_epoch):
        super().__init__()
        self.net, self.best_epoch = nn.Linear(4, 3), best_epoch

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", float(self.current_epoch != self.best_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def make_loader():
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader([*zip(inputs, torch.arange(8) % 3, strict=True)], batch_size=4)


def train_with_lightning(folder, posterior, best_epoch, **options):
    checkpoint = ModelCheckpoint(folder, monitor="loss", **options)
    callback = FlatCallback(Plain(), posterior, network="net", start_fraction=0.2, snapshots_per_epoch=1)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[callback, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = Module(best_epoch)
    trainer.fit(module, make_loader(), make_loader())
    return trainer, module, callback


def train_with_transformers(folder, posterior, best_epoch):
    settings = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(intermediate_size=4, **settings))
    rows = [{"input_ids": torch.arange(1, 5), "labels": k % 2} for k in range(4 * STEPS)]
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        logging_strategy="no",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer = FlatTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        posterior=posterior,
        start_fraction=0.2,
        snapshots_per_epoch=1,
        compute_metrics=lambda _: {"score": float(trainer.state.epoch == best_epoch)},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("posterior", [SWAG(rank=2), SGVB()], ids=["SWAG", "SGVB"])
def test_transformers_restores_the_statistics_of_the_best_checkpoint(posterior, tmp_path):
    trainer = train_with_transformers(tmp_path, posterior, best_epoch=3)
    saved = load_tracker_state(tmp_path / f"checkpoint-{3 * STEPS}" / TRACKER_FILE_NAME)
    last = load_tracker_state(tmp_path / f"checkpoint-{EPOCHS * STEPS}" / TRACKER_FILE_NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = trainer.make_posterior(Categorical(2))
    assert fitted.info["training"]["steps"] == 3 * STEPS
    mean = fitted.states[0].statistics["mean"]
    assert torch.equal(mean, saved["statistics"]["mean"])
    assert not torch.equal(mean, last["statistics"]["mean"])


def test_transformers_warns_if_the_best_checkpoint_has_no_snapshots(tmp_path):
    text = r"collected 0 by step 2 of 10, that of the checkpoint. .* without load_best_model_at_end"
    with pytest.warns(UserWarning, match=text):
        trainer = train_with_transformers(tmp_path, SWAG(rank=2), best_epoch=1)
    with pytest.warns(UserWarning, match="The fitted posterior is MAP"):
        assert trainer.make_posterior(Categorical(2)).posterior == MAP()


@pytest.mark.parametrize("posterior", [SWAG(rank=2), SGVB()], ids=["SWAG", "SGVB"])
def test_lightning_restores_the_statistics_of_a_checkpoint_that_is_evaluated(posterior, tmp_path):
    trainer, module, callback = train_with_lightning(tmp_path, posterior, best_epoch=2)
    last = callback.make_posterior(Categorical(3)).states[0].statistics["mean"]
    trainer.validate(module, make_loader(), ckpt_path="best", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = callback.make_posterior(Categorical(3))
    (path,) = tmp_path.glob("*.ckpt")
    states = torch.load(path, weights_only=False)["callbacks"]
    assert fitted.info["training"]["steps"] == 3 * STEPS
    mean = fitted.states[0].statistics["mean"]
    assert torch.equal(mean, states["FlatCallback"]["statistics"]["mean"])
    assert not torch.equal(mean, last)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_that_is_evaluated_does_not_change_the_next_fit(tmp_path):
    trainer, module, callback = train_with_lightning(tmp_path, SWAG(rank=2), best_epoch=2)
    trainer.validate(Module(0), make_loader(), ckpt_path="best", verbose=False)  # of another module
    assert callback.make_posterior(Categorical(3)).info["training"]["steps"] == EPOCHS * STEPS
    trainer.validate(module, make_loader(), ckpt_path="best", verbose=False)
    trainer.fit_loop.max_epochs = EPOCHS + 2
    trainer.fit(module, make_loader(), make_loader())
    assert callback.make_posterior(Categorical(3)).info["training"]["steps"] == trainer.global_step


@pytest.mark.parametrize("posterior", [SWAG(rank=2), MAP()], ids=["SWAG", "MAP"])
def test_weights_that_are_loaded_alone_after_training_give_a_warning(posterior, tmp_path, recwarn):
    trainer, module, callback = train_with_lightning(tmp_path, posterior, best_epoch=2, save_weights_only=True)
    with torch.no_grad():  # a change that is undone, as by a measurement of sharpness
        module.net.weight.add_(1.0).sub_(1.0).copy_(module.net.weight.clone())
    trainer.validate(module, make_loader(), ckpt_path="best", verbose=False)
    recwarn.clear()
    callback.make_posterior(Categorical(3))
    assert any(OTHER_WEIGHTS in str(warning.message) for warning in recwarn) == (posterior != MAP())
