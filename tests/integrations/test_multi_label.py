"""Several labels of each example in the loops of Lightning and transformers."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import MAP, SAM, SWAG, Bernoulli, Categorical, evaluate, fit
from flatbayes.training.trial import NetworkWarning
from support import LIGHTNING_WARNINGS

pytestmark = LIGHTNING_WARNINGS
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(48, 5, generator=GENERATOR)
Y = (X[:, :3] > 0).float()
IDS = torch.randint(2, 30, (48, 6), generator=GENERATOR)


def bert(num_labels=3):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=num_labels,
        problem_type="multi_label_classification",
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


def test_a_posterior_of_lightning():
    lightning = pytest.importorskip("lightning.pytorch")
    from flatbayes.integrations.lightning import FlatCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch):
            x, y = batch
            return 3 * nn.functional.binary_cross_entropy_with_logits(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = FlatCallback(SAM(0.05), posterior=SWAG(rank=2))
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), 12))
    fitted = callback.make_posterior(Bernoulli(3))
    assert evaluate(fitted, (X, Y)).metrics["accuracy"] > 0.7


def test_a_posterior_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from flatbayes.integrations.transformers import FlatTrainer

    examples = [
        {"input_ids": ids, "attention_mask": torch.ones(6), "labels": y} for ids, y in zip(IDS, Y, strict=True)
    ]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=16, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = FlatTrainer(bert(), arguments, train_dataset=examples, flatness=SAM(0.05), posterior=MAP())
    trainer.train()
    fitted = trainer.make_posterior(Bernoulli(3))
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    assert evaluate(fitted, (inputs, Y)).metrics.keys() >= {"exact_match", "macro_auroc"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_dictionaries_of_token_ids(dtype):
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    fitted = fit(bert(), (inputs, Y.to(dtype)), MAP(), config={"epochs": 1})
    assert fitted.likelihood == Bernoulli(3)
    fitted = fit(bert(5), (inputs, Y.to(dtype)), MAP(), config={"epochs": 1}, new_head=True)
    assert fitted.predict(inputs).mean.shape == (48, 3)


@pytest.mark.parametrize(
    ("targets", "likelihood"),
    [(Y, Categorical(3)), (Y.argmax(1), Bernoulli(3)), (X[:, 0], Categorical(3))],
    ids=["labels as classes", "classes as labels", "numbers as classes"],
)
def test_a_likelihood_of_other_targets_than_those_of_the_training_is_warned_of(targets, likelihood):
    """Probabilities were a softmax of outputs that were trained as log odds, without notice."""
    lightning = pytest.importorskip("lightning.pytorch")
    from flatbayes.integrations.lightning import FlatCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = FlatCallback(SAM(0.05))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], barebones=True)
    trainer.fit(Module(), DataLoader(TensorDataset(X, targets), 12))
    with pytest.warns(NetworkWarning, match=rf"not valid for {type(likelihood).__name__}\("):
        callback.make_posterior(likelihood)


def test_a_likelihood_of_other_labels_than_those_of_transformers_is_warned_of(tmp_path):
    transformers = pytest.importorskip("transformers")
    from flatbayes.integrations.transformers import FlatTrainer

    rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, Y, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no"
    )
    trainer = FlatTrainer(bert(), arguments, train_dataset=rows, flatness=SAM(0.05))
    trainer.train()
    with pytest.warns(NetworkWarning, match="Labels with 3 columns must be one-hot"):
        trainer.make_posterior(Categorical(3))
