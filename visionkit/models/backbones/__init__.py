"""Backbones: what `type:` can name under `backbone`."""

from visionkit.models.backbones.convnext import ConvNeXt
from visionkit.models.backbones.densenet import DenseNet
from visionkit.models.backbones.efficientnet import EfficientNet
from visionkit.models.backbones.light import LightResNet
from visionkit.models.backbones.mobilenet import MobileNetV2, MobileNetV3
from visionkit.models.backbones.plain import MLP, TinyCNN
from visionkit.models.backbones.regnet import RegNet
from visionkit.models.backbones.resnet import ResNet, ResNeXt, WideResNet
from visionkit.models.backbones.shufflenet import ShuffleNetV2
from visionkit.models.backbones.squeezenet import SqueezeNet
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.vgg import VGG

__all__ = [
    "MLP",
    "VGG",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "LightResNet",
    "MobileNetV2",
    "MobileNetV3",
    "RegNet",
    "ResNeXt",
    "ResNet",
    "ShuffleNetV2",
    "SqueezeNet",
    "Timm",
    "TinyCNN",
    "WideResNet",
]
