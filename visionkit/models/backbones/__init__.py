"""Backbones: what `type:` can name under `backbone`."""

from visionkit.models.backbones.efficientnet_lite import EfficientNetLite0
from visionkit.models.backbones.plain import MLP, LightResNet, TinyCNN
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.torchvision import Torchvision

__all__ = ["MLP", "EfficientNetLite0", "LightResNet", "Timm", "TinyCNN", "Torchvision"]
