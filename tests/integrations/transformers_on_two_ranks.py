"""Trains FlatTrainer on two processes and writes down what each ends with; run by test_allreduce.py."""

import os
import sys
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from flatbayes import SWAG
from flatbayes.integrations.transformers import FlatTrainer

sys.path.insert(0, str(Path(__file__).parent))
from on_two_ranks import FLAT, MOMENTUM, NOISY, data, network


class OtherSeeds(transformers.TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        torch.manual_seed(int(os.environ["RANK"]))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return transformers.utils.ModelOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def train(folder, posterior, make_optimizer):
    (x, y), model = data(), Model()
    optimizer = make_optimizer(model.parameters())
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=4, save_strategy="no", use_cpu=True,
        ddp_backend="gloo", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = FlatTrainer(
        model,
        arguments,
        train_dataset=[{"x": x[k], "labels": y[k]} for k in range(len(x))],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        flatness=FLAT,
        posterior=posterior,
        start_fraction=0.0,
        callbacks=[OtherSeeds()],
    )
    trainer.train()
    tracker = trainer._tracker
    statistics = {name: tensor.detach() for name, tensor in tracker.steps.state.statistics.items()}
    result = {"net": model.state_dict(), "statistics": statistics, "num_data": tracker.steps.state.num_data}
    torch.save(result, folder / f"{type(posterior).__name__}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in [(SWAG(rank=2), MOMENTUM), *NOISY]:
        train(Path(sys.argv[1]), *case)
