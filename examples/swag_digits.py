# %% A flat-seeking SWAG posterior on digits: fit, predict with uncertainty, save, load
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import torch

from flatbayes import SAM, SWAG, ConvNet, Digits, FittedPosterior, TrainingConfig, evaluate, fit

data = Digits(train_size=300).load(seed=0)
recipe = TrainingConfig(epochs=20, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4))
fitted = fit(partial(ConvNet, width=16), data, SWAG(rank=5), SAM(rho=0.1), recipe, seed=0)

# %% Each prediction is the average of 30 networks, and is least sure of itself where it is wrong
predictive = fitted.predict(data.test.inputs, num_draws=30)
right = predictive.top_class == data.test.targets
print(
    f"entropy where right {predictive.entropy[right].mean():.3f}, where wrong {predictive.entropy[~right].mean():.3f}"
)
print(evaluate(fitted, data.test.inputs, data.test.targets).metrics)

# %% The artefact is a folder of data, never code
folder = fitted.save(Path(mkdtemp()) / "digits-swag")
again = FittedPosterior.load(folder)
assert torch.equal(again.predict(data.test.inputs).log_probs, predictive.log_probs)
print("kept in", folder)
