# %% Sharpness-aware training and a posterior for any LightningModule, by one callback
import logging
import warnings
from pathlib import Path
from tempfile import mkdtemp

warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)  # in Lightning
warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")  # digits need none

import lightning as L  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from flatbayes import SAM, SWAG, Categorical, FittedPosterior, evaluate  # noqa: E402
from flatbayes.integrations.lightning import FlatCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


# %% The module is unchanged; each step has two clipped gradients of two micro-batches
x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
x = x.float() / 16
L.seed_everything(0, verbose=False)
flat = FlatCallback(SAM(rho=0.1), SWAG(rank=10), start_fraction=0.5)
trainer = L.Trainer(
    max_epochs=20,
    callbacks=[flat],
    accumulate_grad_batches=2,
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
model = Classifier()
trainer.fit(model, DataLoader(TensorDataset(x[:1000], y[:1000]), batch_size=32, shuffle=True))

# %% The collected posterior predicts with uncertainty; its artefact does not need Lightning
fitted = flat.make_posterior(Categorical(10))
print(evaluate(fitted, x[1000:], y[1000:]).metrics)
noise = torch.rand(500, 64)
print(f"entropy on digits {fitted.predict(x[1000:]).entropy.mean():.3f}, on noise", end=" ")
print(f"{fitted.predict(noise).entropy.mean():.3f}")
folder = fitted.save(Path(mkdtemp()) / "digits")
reloaded = FittedPosterior.load(folder, Classifier())
assert torch.equal(reloaded.predict(x[1000:]).log_probs, fitted.predict(x[1000:]).log_probs)
