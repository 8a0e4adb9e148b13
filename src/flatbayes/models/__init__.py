"""Networks to start from, made for the shape of one example and a number of classes."""

from flatbayes.models.conv_net import ConvNet
from flatbayes.models.mlp import MLP
from flatbayes.models.pre_resnet import PreResNet
from flatbayes.models.wide_resnet import WideResNet

__all__ = ["MLP", "ConvNet", "PreResNet", "WideResNet"]
