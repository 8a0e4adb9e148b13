"""Network architectures, constructed from the shape of one example and the number of outputs."""

from flatbayes.models.conv_net import ConvNet
from flatbayes.models.dense_net import DenseNet
from flatbayes.models.head import replace_head
from flatbayes.models.mlp import MLP
from flatbayes.models.residual import PreResNet, WideResNet
from flatbayes.models.resnet import ResNet
from flatbayes.models.vgg import VGG
from flatbayes.models.vit import ViT

__all__ = ["MLP", "VGG", "ConvNet", "DenseNet", "PreResNet", "ResNet", "ViT", "WideResNet", "replace_head"]
