"""Networks to start from, made for the shape of one example and a number of classes."""

from flatbayes.models.conv_net import ConvNet
from flatbayes.models.dense_net import DenseNet
from flatbayes.models.head import replace_head
from flatbayes.models.mlp import MLP
from flatbayes.models.pre_resnet import PreResNet
from flatbayes.models.resnet import ResNet
from flatbayes.models.vgg import VGG
from flatbayes.models.vit import ViT
from flatbayes.models.wide_resnet import WideResNet

__all__ = ["MLP", "VGG", "ConvNet", "DenseNet", "PreResNet", "ResNet", "ViT", "WideResNet", "replace_head"]
