"""Trained to the end: pictures that label some of the classes each are worth nearly as much as
pictures that label all, and only because what is not labelled is not taken for background.

Takes half an hour on two cores: `pytest -m slow tests/test_partial_label_training.py -s`.
"""

import json

import pytest

from visionkit.data.shapes import generate_shapes
from visionkit.training import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZE, PICTURES, STEPS = 128, 500, 400
HALVES = (["circle", "ring"], ["square", "star", "triangle"])
HEADS = {
    "one-stage": ({"type": "detection.FCOS", "score_threshold": 0.05}, "bbox/AP"),
    "two-stage with masks": (
        {"type": "instance.MaskRCNN", "box_batch_size": 64, "rpn_pre_nms_train": 500},
        "segm/AP",
    ),
    "class map": ({"type": "semantic.SemanticFPN"}, "mIoU"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same pictures three times: all objects annotated, and one half of the classes each.

    Every file lists all classes, so that nothing but `labelled` tells what is missing.
    """
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(root / "train", images=PICTURES, size=SIZE, seed=0)
    generate_shapes(root / "val", images=100, size=SIZE, seed=1)
    data = json.loads((root / "train/annotations.json").read_text())
    id_of = {category["name"]: category["id"] for category in data["categories"]}
    for number, names in enumerate(HALVES):
        ids = {id_of[name] for name in names}
        kept = [a for a in data["annotations"] if a["category_id"] in ids]
        (root / f"train/half{number}.json").write_text(json.dumps({**data, "annotations": kept}))
    return root


def score(folder, output, head, metric, sources):
    def coco(split, file):
        painted = {"semantic": "paint"} if metric == "mIoU" else {}
        images, annotations = str(folder / split / "images"), str(folder / file)
        return {"type": "coco.Coco", "images": images, "annotations": annotations, **painted}

    common = {"feeds": ["head"], "image_size": SIZE}
    flip = [{"type": "transforms.HorizontalFlip"}]
    data = {
        name: {
            **common,
            "batch_size": 8 // len(sources),
            "transforms": flip,
            "train": coco("train", file),
            "labelled": labelled,
        }
        for name, (file, labelled) in sources.items()
    }
    data["truth"] = {**common, "val": coco("val", "val/annotations.json")}
    spec = {
        "backbone": {"type": "resnet.ResNet", "depth": 18},
        "neck": {"type": "fpn.FPN", "channels": 64},
        "heads": {"head": head},
        "data": data,
        "train": {
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.05,
            "steps": STEPS,
            "validate": 1000,
        },
        "output": str(output),
    }
    return train(spec).metrics[f"head/{metric}"]


@pytest.mark.parametrize("kind", HEADS)
def test_halves_of_the_labels_reach_nine_tenths(kind, folder, tmp_path):
    head, metric = HEADS[kind]
    halves = [(f"train/half{number}.json", names) for number, names in enumerate(HALVES)]
    full = score(folder, tmp_path / "full", head, metric, {"all": ("train/annotations.json", None)})
    partial = score(
        folder, tmp_path / "partial", head, metric, dict(zip("ab", halves, strict=True))
    )
    unmarked = {name: (file, None) for name, (file, _) in zip("ab", halves, strict=True)}
    naive = score(folder, tmp_path / "naive", head, metric, unmarked)
    print(f"\n{kind}: {metric} full {full:.3f}, partial {partial:.3f}, naive {naive:.3f}")
    assert partial >= 0.9 * full
    assert naive < 0.9 * full
