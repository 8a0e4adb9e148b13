"""Trains on two processes and writes down what each of them ends with; run by test_allreduce.py."""

import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from flatbayes import IVON, LRT, SAM, SGHMC, SGVB, SVGD, SWAG, EntropyMCMC
from flatbayes.integrations.lightning import FlatCallback

FLAT, SIZE, EPOCHS, RATE = SAM(rho=0.3), 4, 2, 0.1
MOMENTUM = partial(torch.optim.SGD, lr=RATE, momentum=0.9)
NOISY = [
    (SGHMC(max_snapshots=3), partial(torch.optim.SGD, lr=RATE)),
    (EntropyMCMC(coupling=0.5, max_snapshots=3), partial(torch.optim.SGD, lr=RATE)),
    (SVGD(num_particles=2), partial(torch.optim.Adam, lr=0.01)),
    (SGVB(initial_std=0.1), partial(torch.optim.Adam, lr=0.01)),
    (IVON(beta2=0.9), partial(torch.optim.SGD, lr=RATE)),
    (LRT(initial_std=0.1), partial(torch.optim.Adam, lr=0.01)),
]


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 5, generator=generator), torch.arange(32) % 3


def network(norm=None):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), norm or nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


class Module(lightning.LightningModule):
    def __init__(self, norm=None, optimizer=MOMENTUM):
        super().__init__()
        self.net, self.optimizer = network(norm), optimizer

    def on_train_start(self):
        torch.manual_seed(self.trainer.global_rank)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def train_dataloader(self):
        sampler = DistributedSampler(range(32), num_replicas=2, rank=self.trainer.global_rank, shuffle=False)
        return DataLoader(TensorDataset(*data()), batch_size=SIZE, sampler=sampler)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def train(folder, norm, accumulate, posterior=SWAG(rank=2), optimizer=MOMENTUM):
    module, callback = Module(norm, optimizer), FlatCallback(FLAT, posterior, start_fraction=0.0, network="net")
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    found = {"net": module.net.state_dict(), "statistics": callback.state_dict()["statistics"]}
    name = type(module.net[1]).__name__ if isinstance(posterior, SWAG) else type(posterior).__name__
    torch.save(found, folder / f"{name}-{accumulate}-{trainer.global_rank}.pt")
    trainer.strategy.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for accumulate in (1, 2):
        train(Path(sys.argv[1]), None, accumulate)
    train(Path(sys.argv[1]), nn.BatchNorm1d(8), 1)
    for posterior, optimizer in NOISY:
        train(Path(sys.argv[1]), None, 1, posterior, optimizer)
