"""How each head of the package is tested: a new one needs an entry in `HEADS`, and no other list.

`tests/models/test_every_head.py` fails until it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """The settings of one head.

    name: its key in tests/golden/losses.json, in `small_runs.SMALL_RUNS` and in `runs.RESUMED`.
    task: `task` of a config; None: the head needs another one, and is in the joint runs alone.
    pyramid: whether it needs an FPN.
    class_layer: of a head that finds objects, a regular expression of the end of the name of the
        layers with the class logits, whose outputs are (anchors of a cell) x (classes).
    contract: arguments in the contract tests, of a head that is slow with its defaults.
    golden: arguments in the 20 steps that the golden file holds (`golden/recipes.py`).
    small: arguments in runs of 3 steps (`small_runs.py`).
    resumed: arguments in runs that are cut off and resumed (`runs.py`); None: a head with the
        same layers is resumed.
    """

    name: str
    task: str | None
    pyramid: bool = False
    class_layer: str | None = None
    contract: Arguments = field(default_factory=dict)
    golden: Arguments = field(default_factory=dict)
    small: Arguments = field(default_factory=dict)
    resumed: Arguments | None = field(default_factory=dict)


GOLDEN_RCNN = {
    "box_hidden": 32,
    "box_batch_size": 16,
    "rpn_batch_size": 32,
    "rpn_pre_nms_train": 100,
    "rpn_post_nms_train": 50,
}
RESUMED_RCNN = {
    "anchor_sizes": [[8], [16]],
    "rpn_batch_size": 16,  # fewer than there are, so that they are drawn at random
    "rpn_post_nms_train": 12,
    "rpn_post_nms_test": 8,
    "box_batch_size": 8,
    "box_hidden": 8,
    "box_pool_size": 2,
}
SMALL_RTDETR = {
    "channels": 32,
    "num_layers": 2,
    "feed_forward": 32,
    "num_queries": 30,
    "denoising": 10,
}
PIXELS = {"dropout": 0.0, "norm": "group"}

HEADS: dict[str, Case] = {
    "Classification": Case("classification", "classification", resumed={"dropout": 0.3}),
    "Localization": Case("localization", "localization", resumed={"channels": 4, "num_convs": 1}),
    "FasterRCNN": Case(
        "faster_rcnn",
        "detection",
        pyramid=True,
        class_layer="cls_score",
        golden=GOLDEN_RCNN,
        small={"box_hidden": 32},
        resumed=RESUMED_RCNN,
    ),
    "FCOS": Case(
        "fcos", "detection", pyramid=True, class_layer="cls_logits", resumed={"num_convs": 1}
    ),
    "RetinaNet": Case(
        "retinanet",
        "detection",
        pyramid=True,
        class_layer="cls_logits",
        small={"num_convs": 1},
        resumed={"num_convs": 1},
    ),
    "TaskAligned": Case(
        "task_aligned",
        "detection",
        pyramid=True,
        class_layer="classification.predict",
        small={"num_convs": 0},
        resumed={"num_convs": 1},
    ),
    "AlignedMask": Case(
        "aligned_mask",
        "instance_segmentation",
        pyramid=True,
        class_layer="classification.predict",
        golden={"num_convs": 1, "mask_size": 14},
        small={"num_convs": 0, "mask_convs": 0},
        resumed={"num_convs": 1, "mask_convs": 1, "mask_size": 7},
    ),
    "SSD": Case(
        "ssd",
        "detection",
        pyramid=True,
        class_layer=r"classification_head\.module_list\.\d+",
        resumed={"box_ratios": [[2], [2]], "lite": True},
    ),
    "RTDETR": Case(
        "rtdetr",
        "detection",
        pyramid=True,
        class_layer=r"(enc_score_head|decoder\.class_embed\.\d+)",
        contract={"channels": 64, "num_layers": 2, "num_queries": 50, "denoising": 20},
        golden=SMALL_RTDETR,
        small=SMALL_RTDETR,
        resumed={**SMALL_RTDETR, "channels": 8, "attention_heads": 2},
    ),
    "MaskRCNN": Case(
        "mask_rcnn",
        "instance_segmentation",
        pyramid=True,
        class_layer="cls_score",
        golden=GOLDEN_RCNN,
        small={"box_hidden": 32, "mask_convs": 1},
        resumed={**RESUMED_RCNN, "mask_channels": 4, "mask_convs": 1},
    ),
    "SemanticFPN": Case(
        "semantic",
        "semantic_segmentation",
        pyramid=True,
        resumed={"channels": 8, "dropout": 0.3},
    ),
    "FCN": Case(
        "fcn",
        "semantic_segmentation",
        golden={"dice": 0.5, "aux_weight": 0.5},
        small={"dice": 0.5, "aux_weight": 0.5, **PIXELS},
        resumed=None,
    ),
    "DeepLabV3": Case(
        "deeplab",
        "semantic_segmentation",
        golden={"channels": 16, "rates": [1, 2]},
        small={"channels": 8, **PIXELS},
        resumed=None,
    ),
    "LRASPP": Case(
        "lraspp",
        "semantic_segmentation",
        golden={"channels": 16},
        small={"channels": 8, "norm": "group"},
        resumed=None,
    ),
    "Embedding": Case(
        "embedding",
        "embedding",
        golden={"loss": "contrastive"},
        resumed={"size": 4, "dropout": 0.3},
    ),
    "Autoencoder": Case(
        "autoencoder", "autoencoder", small={"channels": 8}, resumed={"code": 2, "channels": 4}
    ),
    "VAE": Case(
        "vae",
        "autoencoder",
        golden={"latent": 2},
        small={"latent": 2, "channels": 8},
        resumed={"size": 32, "latent": 2, "channels": 4},
    ),
    "Attributes": Case(
        "attributes", None, resumed={"boxes_from": "fcos", "pool_size": 2, "hidden": 8}
    ),
}
