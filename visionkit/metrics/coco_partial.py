"""Scoring where not every class is labelled in every picture: what is not known is not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from visionkit.metrics.coco_detections import Detections


def labelled_only(truth: dict[str, Any], results: Detections, own_ids: Sequence[int]) -> Detections:
    """The results that can be right or wrong.

    Out go those of the model's own classes (`own_ids`) that are not among the categories of the
    truth, and, in a picture with `neg_category_ids` (Gupta et al. 2019, LVIS), those of classes
    that have no object in it and are not in that list. Other unknown classes stay, as errors.
    """
    scored = {category["id"] for category in truth["categories"]}
    left_out = set(own_ids) - scored
    checked: dict[int, set[int]] = {
        image["id"]: set(image["neg_category_ids"])
        for image in truth["images"]
        if image.get("neg_category_ids") is not None
    }
    if not left_out and not checked:
        return results
    for annotation in truth["annotations"]:
        if annotation["image_id"] in checked:
            checked[annotation["image_id"]].add(annotation["category_id"])
    pairs = zip(results.image_ids.tolist(), results.category_ids.tolist(), strict=True)
    kept = [
        category not in left_out and category in checked.get(image, (category,))
        for image, category in pairs
    ]
    return results[np.array(kept, bool)]


def with_incomplete_as_crowds(truth: dict[str, Any]) -> dict[str, Any]:
    """The truth with one crowd region more, all of the picture, for each class of which only some
    objects are labelled in it (`not_exhaustive_category_ids`): a detection of that class that
    matches no labelled object is then ignored, as LVIS does."""
    regions: dict[int, list[int]] = defaultdict(list)
    scored = {category["id"] for category in truth["categories"]}
    for image in truth["images"]:
        for id_ in image.get("not_exhaustive_category_ids") or ():
            regions[image["id"]] += [id_] * (id_ in scored)
    if not regions:
        return truth
    crowds = []
    for image in truth["images"]:
        w, h = image["width"], image["height"]
        for id_ in regions[image["id"]]:
            crowds.append(
                {
                    "image_id": image["id"],
                    "category_id": id_,
                    "bbox": [0, 0, w, h],
                    "area": w * h,
                    "iscrowd": 1,
                    "segmentation": [[0, 0, w, 0, w, h, 0, h]],
                }
            )
    numbered = [{**r, "id": i} for i, r in enumerate([*truth["annotations"], *crowds], start=1)]
    return {**truth, "annotations": numbered}
