"""Necks: what `type:` can name under `neck`."""

from visionkit.models.necks.fpn import FPN
from visionkit.models.necks.hybrid import HybridEncoder
from visionkit.models.necks.pan import PAN
from visionkit.models.necks.simple_fpn import SimpleFPN
from visionkit.models.necks.ssd import SSDExtra

__all__ = ["FPN", "PAN", "HybridEncoder", "SSDExtra", "SimpleFPN"]
