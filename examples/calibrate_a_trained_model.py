# %% Uncertainty for a network that is already trained
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes import MAP, SAM, SWAG, Digits, Laplace, Plain, TrainingConfig, evaluate, fit
from flatbayes.data import Standardize

data = Digits().load(seed=0)
pixels, labels = data.train.inputs.float() / 16, data.train.targets

# %% A network trained without flatbayes: it fits its training data and is overconfident
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in range(40):
    for batch in torch.randperm(len(pixels)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(net(pixels[batch]), labels[batch]).backward()
        optimizer.step()
torch.save(net.state_dict(), "net.pt")

# %% The network was trained on pixels / 16, so its inputs must be scaled in the same way
scale = Standardize(mean=torch.zeros(1, 1, 1), std=torch.full((1, 1, 1), 16.0))


def show(name, fitted):
    metrics = evaluate(fitted, data.test).metrics
    print(f"{name:32} accuracy {metrics['accuracy']:.3f}  NLL {metrics['nll']:.3f}  ECE {metrics['ece']:.3f}")


# %% Without further training (epochs=0): the network alone, and with a Gaussian over its last layer
no_training = TrainingConfig(epochs=0)
show("the network alone", fit(net, data, MAP(), Plain(), no_training, init="net.pt", transform=scale))
show(
    "last-layer Laplace, no training",
    fit(net, data, Laplace(temperature=0.03), Plain(), no_training, init="net.pt", transform=scale),
)

# %% Five epochs for SWAG. On fitted data gradients are small, so without SAM the weights change little
show("SWAG, 5 epochs", fit(net, data, SWAG(), Plain(), init="net.pt", transform=scale))
flat = fit(net, data, SWAG(), SAM(rho=0.3), init="net.pt", transform=scale)
show("flat SWAG, 5 epochs", flat)
last = fit(net, data, SWAG(params="last_layer"), SAM(rho=0.3), init="net.pt", transform=scale)
show("flat SWAG of the last layer", last)
flat.save("flat-swag")
