# %% SWAG with SAM on digits: fit, predict with uncertainty, save, load
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import torch

from flatbayes import SAM, SWAG, ConvNet, Digits, FittedPosterior, TrainingConfig, evaluate, fit

data = Digits(train_size=300).load(seed=0)
config = TrainingConfig(epochs=20, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4))
fitted = fit(partial(ConvNet, width=16), data, SWAG(rank=5), SAM(rho=0.1), config, seed=0)

# %% A prediction is the average of 30 networks; its entropy is larger for misclassified images
predictive = fitted.predict(data.test.inputs, num_draws=30)
correct = predictive.top_class == data.test.targets
entropy = predictive.entropy
print(f"entropy: correct {entropy[correct].mean():.3f}, misclassified {entropy[~correct].mean():.3f}")
print(evaluate(fitted, data.test).metrics)

# %% The artefact is a folder of data without code
folder = fitted.save(Path(mkdtemp()) / "digits-swag")
loaded = FittedPosterior.load(folder)
assert torch.equal(loaded.predict(data.test.inputs).log_probs, predictive.log_probs)
print("saved in", folder)
