# %% Your own arrays and network, passed as a loader and a function
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import SAM, Categorical, Ensemble, TrainingConfig, fit

torch.manual_seed(0)
x = torch.randn(600, 8)
y = (x[:, :3] + 0.5 * torch.randn(600, 3)).argmax(1)
loader = DataLoader(TensorDataset(x[:400], y[:400]), batch_size=32, shuffle=True, drop_last=True)


def make_network():
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 3))


fitted = fit(
    make_network,
    loader,
    posterior=Ensemble(size=3),
    flatness=SAM(rho=0.05),
    config=TrainingConfig(epochs=15, optimizer=lambda params: torch.optim.Adam(params, lr=3e-3)),
    likelihood=Categorical(3),
)

# %% Accuracy, and entropy of right and wrong predictions
predictive = fitted.predict(x[400:])
is_right = predictive.top_class == y[400:]
print(f"accuracy {is_right.float().mean():.3f}")
print(
    f"entropy of right predictions {predictive.entropy[is_right].mean():.3f}, of wrong ones "
    f"{predictive.entropy[~is_right].mean():.3f}"
)
