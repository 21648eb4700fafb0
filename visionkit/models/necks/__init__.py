"""Necks: what `type:` can name under `neck`."""

from visionkit.models.necks.fpn import FPN

__all__ = ["FPN"]
