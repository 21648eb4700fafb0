"""Heads: what `type:` can name under `head` and `heads`."""

from visionkit.models.heads.aligned_mask import AlignedMask
from visionkit.models.heads.attributes import Attributes
from visionkit.models.heads.autoencoder import VAE, Autoencoder
from visionkit.models.heads.classification import Classification
from visionkit.models.heads.detection import FasterRCNN, MaskRCNN
from visionkit.models.heads.embedding import Embedding
from visionkit.models.heads.fcos import FCOS
from visionkit.models.heads.localization import Localization
from visionkit.models.heads.retinanet import RetinaNet
from visionkit.models.heads.rtdetr import RTDETR
from visionkit.models.heads.semantic import FCN, LRASPP, DeepLabV3, SemanticFPN
from visionkit.models.heads.ssd import SSD
from visionkit.models.heads.task_aligned import TaskAligned

__all__ = [
    "FCN",
    "FCOS",
    "LRASPP",
    "RTDETR",
    "SSD",
    "VAE",
    "AlignedMask",
    "Attributes",
    "Autoencoder",
    "Classification",
    "DeepLabV3",
    "Embedding",
    "FasterRCNN",
    "Localization",
    "MaskRCNN",
    "RetinaNet",
    "SemanticFPN",
    "TaskAligned",
]
