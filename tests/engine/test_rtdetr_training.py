"""RT-DETR in the loop: it learns from a file of transformers, and other heads use its boxes."""

import json
import os
from pathlib import Path

import pytest
import torch

import visionkit
from support.rtdetr import small_config, transformers_model
from visionkit.config import load_config
from visionkit.data.datasets import Shapes
from visionkit.models.build import with_published
from visionkit.models.weights import COCO_CLASSES

DATA = Path(os.environ.get("VISIONKIT_TEST_DATA", "/nowhere")) / "coco_mini"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs VISIONKIT_TEST_DATA")
def test_the_loss_falls_on_photos_from_the_weights_of_a_file(tmp_path):
    model = transformers_model(2, 80)
    model.config.id2label = dict(enumerate(COCO_CLASSES))
    model.save_pretrained(tmp_path / "weights")
    config = small_config(tmp_path / "weights/model.safetensors")
    truth = json.loads((DATA / "annotations/instances_val2017.json").read_text())
    truth["images"] = truth["images"][:4]
    known = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in known]
    (tmp_path / "four.json").write_text(json.dumps(truth))
    files = {"images": str(DATA / "val2017"), "annotations": str(tmp_path / "four.json")}
    config["data"] |= {"train": files, "val": files, "batch_size": 4, "transforms": []}
    config["train"] |= {"steps": 30, "validate": 30, "optimizer": "adamw", "lr": 2e-3}
    config["train"] |= {"warmup_steps": 0, "log_every": 1, "plots": False, "report": False}
    config["train"] |= {"lr_scale": {"^backbone": 0.1}, "clip_norm": 1.0}
    run = visionkit.train(config, {"output": str(tmp_path / "run"), "data.workers": 0})
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    totals = [record["train/total"] for record in map(json.loads, lines) if "train/total" in record]
    assert len(totals) == 30
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])


def test_attributes_ride_on_its_boxes(tmp_path):
    """Trained together; each object that it finds gets its attributes."""
    config = small_config(None)
    head = {**config.pop("head"), "max_detections": 7, "score_threshold": 0.0}
    del config["task"], config["weights"]
    config["backbone"]["norm"] = "batch"
    heads = {"objects": head, "color": {"type": "Attributes", "boxes_from": "objects"}}
    config["data"] = {"main": {**config["data"], "feeds": [*heads]}, "workers": 0}
    config["train"] |= {"plots": False, "report": False}
    run = visionkit.train(config | {"heads": heads}, {"output": str(tmp_path / "run")})
    assert run.metrics["color/loss/total"] > 0
    image = Shapes(num_images=1, size=96, seed=9)[0].image
    found = visionkit.load(run.directory).predict(image).heads
    assert len(found["objects"]["boxes"]) == len(found["color"]["attributes"]) == 7
    assert torch.equal(found["objects"]["boxes"], found["color"]["boxes"])


def test_coco_means_the_published_weights_of_the_architecture():
    config = with_published(load_config("detection_rtdetr", ["weights=coco"]))
    assert config.weights == "hf://PekingU/rtdetr_v2_r18vd"
    assert config.backbone["norm"] == "frozen" and config.backbone["mean"] == (0, 0, 0)
