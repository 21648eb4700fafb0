"""Random COCO truths and results, and what pycocotools itself makes of them."""

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionkit.metrics.coco.detections import DetectionChecker
from visionkit.metrics.coco.ground_truth import read_truth

W, H = 96, 64  # of the images of `truth_of_six`


def rectangle(box, size):
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


SQUARE = rectangle([10, 10, 40, 30], (80, 100))


def single_object(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30]}
    annotation |= {"area": 1200.0, "iscrowd": 0, **changes}
    return {
        "images": [{"id": 1, "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation],
    }


PERFECT = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "score": 0.9}


def scene(seed, num_images=6, num_categories=3, detections=True, crowds=True):
    """Truth with sparse ids and crowds; detections near it, far from it, and of wrong classes."""
    rng = np.random.default_rng(seed)
    ids = [5, 17, 90][:num_categories]
    truth = {
        "images": [{"id": 3 * i + 7, "width": 120, "height": 100} for i in range(num_images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(rng.integers(0, 6)):
            w, h = rng.integers(4, 60, 2)
            box = [int(rng.integers(0, 120 - w)), int(rng.integers(0, 100 - h)), int(w), int(h)]
            category = int(rng.choice(ids))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": float(w * h),
                    "iscrowd": int(crowds and rng.random() < 0.15),
                    "segmentation": rectangle(box, (100, 120)),
                }
            )
            for _ in range(rng.integers(0, 4) if detections else 0):
                moved = [max(0.0, float(v + rng.normal(0, 3))) for v in box[:2]]
                shape = [max(1.0, float(v + rng.normal(0, 3))) for v in box[2:]]
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.8 else int(rng.choice(ids)),
                        "bbox": moved + shape,
                        "score": round(float(rng.random()), 2),  # with ties
                        "segmentation": rectangle(moved + shape, (100, 120)),
                    }
                )
    return truth, results


def ellipse(box, corners):
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1)
    return [points.round(2).ravel().tolist()]


def uncompressed(rle):
    flat = coco_mask.decode({**rle, "counts": rle["counts"].encode()}).ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return {**rle, "counts": [0] * int(flat[0]) + np.diff(ends).tolist()}


def wild(seed):
    """A scene with everything that is valid: ids in any order and of any size, unused categories,
    empty images, crowds of each kind, missing masks, ties of score and of IoU, more than 100
    detections of a class in an image, boxes without area and beyond the image."""
    rng = np.random.default_rng(seed)
    truth, results = scene(seed, int(rng.integers(1, 9)), int(rng.integers(1, 4)))
    truth["categories"] += [{"id": 3, "name": "unused"}, {"id": 10**15, "name": "unused too"}]
    for record in truth["images"] + truth["annotations"] + results:
        key = "image_id" if "image_id" in record else "id"
        record[key] = (-1) ** record[key] * (record[key] + 2**53)
    for part in (truth["images"], truth["categories"], truth["annotations"], results):
        rng.shuffle(part)
    for annotation in truth["annotations"]:
        kind = rng.integers(6)
        if kind < 3:
            annotation["segmentation"] = ellipse(annotation["bbox"], int(rng.integers(3, 14)))
        elif kind == 3:
            annotation["segmentation"] = uncompressed(annotation["segmentation"])
        elif kind == 4:
            annotation["segmentation"] = [None, [], {}][rng.integers(3)]
        if rng.random() < 0.1:
            annotation["area"] = [0, 32**2, 96**2, 1e5**2, 1e11][rng.integers(5)]
        if rng.random() < 0.1:
            annotation["bbox"][int(rng.integers(2, 4))] = 0
    whole, coarse, beyond = rng.random(3) < 0.3
    for result in results:
        result["bbox"] = [float(round(v)) if whole else v for v in result["bbox"]]
        result["bbox"][0] -= 90.0 * bool(beyond and rng.random() < 0.5)
        result["score"] = round(result["score"], 1) if coarse else result["score"]
    if results and rng.random() < 0.4:
        results += [dict(results[i]) for i in rng.integers(0, len(results), 150)]
        box = results[0]["bbox"]
        results += [{**results[0], "bbox": [v + 0.01 * i for v in box]} for i in range(110)]
    return truth, results


def dirty(seed):
    """A wild scene as careless programs write it: ids of annotations that are 0, repeated, missing
    or no numbers, no area, no iscrowd, a key `ignore`, objects of negative extent; detections
    with a score of 0 or 1 and with masks of no pixel."""
    truth, results = wild(seed)
    rng = np.random.default_rng(seed)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = [number, 0, 7, None, "a", 10**30][rng.integers(6)]
        if rng.random() < 0.2:
            del annotation["id"]
        if rng.random() < 0.3:
            del annotation["area"]
        if rng.random() < 0.3 and not annotation["iscrowd"]:
            del annotation["iscrowd"]
        if rng.random() < 0.2:
            annotation["ignore"] = int(rng.integers(2))
        if rng.random() < 0.05:
            annotation["bbox"][int(rng.integers(2, 4))] *= -1
    for result in results:
        if rng.random() < 0.1:
            result["score"] = int(rng.integers(2))
        if rng.random() < 0.1:
            result["segmentation"] = rectangle([0, 0, 0, 0], (100, 120))
    return truth, results


def only(results, iou_type):
    leave_out = "segmentation" if iou_type == "bbox" else "bbox"
    return [{k: v for k, v in r.items() if k != leave_out} for r in results]


def truth_records(truth):
    """The objects of a `GroundTruth` as COCO annotations without ids."""
    masks = truth.masks.coco(truth.mask_rows)
    return [
        {
            "image_id": int(truth.image_ids[truth.image[i]]),
            "category_id": int(truth.category_ids[truth.category[i]]),
            "bbox": truth.boxes[i].tolist(),
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.iscrowd[i]),
            "segmentation": masks[i],
        }
        for i in range(len(truth))
    ]


def tidy(truth, iou_type):
    """The same for pycocotools, in what visionkit says that it means: annotations numbered from
    1, a missing iscrowd 0, `ignore` a crowd, a missing box that of the mask, a missing or negative
    area that of the mask or of the box, an object without a mask a region to ignore."""
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    annotations = []
    for number, old in enumerate(truth["annotations"], start=1):
        mask = old.get("segmentation")
        if isinstance(mask, list):
            mask = [part for part in mask if part != []]
        old = old | {"segmentation": mask, "bbox": old.get("bbox") or box_of(mask)}
        new = {"id": number, "iscrowd": int(old.get("iscrowd") or old.get("ignore") or 0)}
        new |= {key: old[key] for key in ("image_id", "category_id")}
        x, y, w, h = old["bbox"] if iou_type == "bbox" or not old.get("segmentation") else [0] * 4
        area = max(w, 0) * max(h, 0)
        if iou_type == "bbox":
            new["bbox"] = old["bbox"]
        elif old.get("segmentation"):
            new["segmentation"] = old["segmentation"]
            area = mask_area(old["segmentation"], *sizes[old["image_id"]])
        else:
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            new |= {"segmentation": outline, "iscrowd": 1}
        given = old.get("area")
        new["area"] = float(area) if given is None or given < 0 else given
        annotations.append(new)
    return {**truth, "annotations": annotations}


def box_of(mask):
    """The box around the corners or the pixels of a mask."""
    if isinstance(mask, list):
        points = np.concatenate([np.array(part) for part in mask]).reshape(-1, 2)
        return [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
    if isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, *mask["size"])
    return coco_mask.toBbox(mask).tolist()


def mask_area(mask, h, w):
    if isinstance(mask, list) or isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, h, w)
    return coco_mask.area(coco_mask.merge(mask) if isinstance(mask, list) else mask)


def raw_pycocotools(truth, results, iou_type, max_detections=(1, 10, 100)):
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        if results:
            found = coco.loadRes(copy.deepcopy(results))
        else:  # of which loadRes makes an IndexError
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, iou_type)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections[-1] == 100:  # else it prints -1 for nearly all
            evaluation.summarize()
    return evaluation


def truth_of_six():
    """Six images, each with a cat and a dog at other places."""
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in range(1, 7)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [],
    }
    for i in range(1, 7):
        for category, box in ((1, [8 + i, 12, 30, 28]), (2, [50, 20 + 2 * i, 28, 26])):
            truth["annotations"].append(
                {
                    **{"id": 2 * i + category, "image_id": i, "category_id": category},
                    **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
                    "segmentation": rectangle(box, (H, W)),
                }
            )
    return truth


def results_of(truth, **changes):
    """Perfect results; each change is a function of the annotation."""
    results = []
    for number, annotation in enumerate(truth["annotations"]):
        record = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        record["score"] = 0.9 - number / 100
        results.append(record | {key: change(annotation) for key, change in changes.items()})
    return results


def checked(truth, results, iou_type="bbox"):
    """What scoring makes of a truth and results."""
    objects = read_truth(copy.deepcopy(truth), iou_type)
    checker = DetectionChecker(objects)
    checker.add(results)
    return objects, checker.detections()
