"""Files that are not visionkit checkpoints: what they look like, and architectures by name."""

import gzip
import io
import json
import os
import pickle
import sys
import types
import zipfile
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.errors import CheckpointError
from visionkit.models.backbones.weights import read
from visionkit.models.build import build_model
from visionkit.models.weights import load_model_weights
from visionkit.runs import checkpoint
from visionkit.runs.foreign import architecture, content_kind, state_dict_of
from visionkit.types import Classes


def image(format):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    return file.getvalue()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file.getvalue()


def pickled_by(package, write=torch.save):
    """A file with an object of a class in that package, which is not installed."""
    parts = package.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    stand_ins = {name: types.ModuleType(name) for name in names}
    stand_ins[package].Model = type("Model", (), {"__module__": package})
    file = io.BytesIO()
    with patch.dict(sys.modules, stand_ins):
        write({"model": stand_ins[package].Model(), "epoch": 3}, file)
    return file.getvalue()


def whole_model():
    file = io.BytesIO()
    torch.save(models.squeezenet1_1(), file)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FILES = {
    "an empty file": b"",
    "an HTML page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "an HTML page, as": b"<!-- saved --><html lang='en'>",
    "an XML file": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
    "an exported model in ONNX": b"\x08\x07\x12\x07pytorch\x1a\x052.1.0",
    "an HDF5 file, as Keras": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "a Keras model": zipped(config_dot_json="{}", model_dot_weights_dot_h5="x"),
    "a gzip archive": gzip.compress(b"weights"),
    "an archive": b"\xfd7zXZ\x00" + bytes(20),
    "a tar archive": bytes(257) + b"ustar\x00" + bytes(300),
    "a zip archive of a/w.bin": zipped(a__w_dot_bin="x"),
    "an image": image("PNG"),
    "an image ": image("JPEG"),
    "an image  ": image("WEBP"),
    "a NumPy array": npy(),
    "a PDF document": b"%PDF-1.7",
    "a text file that begins with 'backbone: {type: MLP}'": b"backbone: {type: MLP}\n",
    "a checkpoint of Ultralytics YOLO": pickled_by("ultralytics.nn.tasks"),
    "a checkpoint of PyTorch Lightning": pickled_by("pytorch_lightning.callbacks"),
    "a whole model that was pickled": whole_model(),
    "a model of scikit-learn": pickled_by("sklearn.svm", pickle.dump),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_told_by_its_content_wherever_it_is_given(kind, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(FILES[kind])
    for reader in (
        lambda: checkpoint.load_latest(path),  # eval, predict and init_from
        lambda: load_model_weights(None, str(path), {}),  # weights
        lambda: read(str(path)),  # backbone.weights
    ):
        with pytest.raises(CheckpointError, match="it looks like") as error:
            reader()
        assert f"it looks like {kind.strip()}" in str(error.value)


@pytest.mark.parametrize("kind", ["an HTML page", "a checkpoint of Ultralytics YOLO"])
def test_every_command_exits_with_4(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").write_bytes(FILES[kind])
    Image.new("RGB", (8, 8)).save("a.png")
    shapes = {"type": "Shapes", "num_images": 4, "size": 32}
    config = {"task": "classification", "data": {"train": shapes, "val": None, "workers": 0}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    for command in (
        ["eval", "file.pt"],
        ["predict", "file.pt", "a.png", "--out", "out"],
        ["train", "c.yaml", "weights=file.pt", "output=run"],
        ["train", "c.yaml", "backbone.weights=file.pt", "output=run"],
        ["train", "c.yaml", "init_from=file.pt", "output=run"],
        ["check", "c.yaml", "weights=file.pt"],
    ):
        assert main(command) == 4, command
        out, err = capsys.readouterr()
        assert kind in out + err and "Traceback" not in err
    assert sorted(os.listdir()) == ["a.png", "c.yaml", "file.pt"]


def test_weights_of_torch_are_no_checkpoint_of_visionkit(tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="it looks like a ResNet-18; a config can start"):
        checkpoint.load_latest(tmp_path / "resnet.pth")
    torch.save({"pytorch-lightning_version": "2.5", "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="it looks like a checkpoint of PyTorch Lightning"):
        checkpoint.load_latest(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "build, kind",
    [
        (models.resnet34, "a ResNet-34"),
        (models.squeezenet1_0, "a SqueezeNet"),
        (models.densenet121, "a DenseNet"),
        (models.convnext_tiny, "a ConvNeXt"),
        (models.shufflenet_v2_x1_0, "a ShuffleNet"),
        (models.mobilenet_v3_small, "a MobileNet or EfficientNet"),
        (models.vgg11, "a VGG network"),
        (models.vit_b_16, "a vision transformer"),
        (models.swin_t, "a Swin transformer"),
        (models.detection.retinanet_resnet50_fpn, "torchvision's RetinaNet with a ResNet-50"),
        (models.detection.retinanet_resnet50_fpn_v2, "torchvision's RetinaNet with a ResNet-50"),
        (models.detection.fcos_resnet50_fpn, "torchvision's FCOS with a ResNet-50"),
        (models.detection.fasterrcnn_resnet50_fpn, "torchvision's Faster R-CNN with a ResNet-50"),
        (
            models.detection.fasterrcnn_resnet50_fpn_v2,
            "torchvision's Faster R-CNN v2 with a ResNet-50",
        ),
        (
            models.detection.maskrcnn_resnet50_fpn_v2,
            "torchvision's Mask R-CNN v2 with a ResNet-50",
        ),
        (
            models.detection.keypointrcnn_resnet50_fpn,
            "torchvision's Keypoint R-CNN with a ResNet-50",
        ),
        (models.detection.ssdlite320_mobilenet_v3_large, "torchvision's SSD"),
        (models.segmentation.lraspp_mobilenet_v3_large, "torchvision's LR-ASPP"),
        (models.segmentation.deeplabv3_resnet50, "torchvision's DeepLabV3 with a ResNet-50"),
        (models.segmentation.fcn_resnet101, "torchvision's FCN with a ResNet-101"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_architectures_are_told_by_their_tensors(build, kind):
    more = {"weights_backbone": None} if "detection" in build.__module__ else {}
    more |= {"weights_backbone": None} if "segmentation" in build.__module__ else {}
    with torch.device("meta"):
        assert architecture(build(weights=None, **more).state_dict()) == kind


@pytest.mark.parametrize(
    "names, kind",
    [
        (["backbone.bottom_up.stem.conv1.weight"], "a Detectron2 model"),
        (["bbox_head.fc_cls.weight", "backbone.conv1.weight"], "an OpenMMLab model"),
        (["transformer.encoder.x", "query_embed.weight", "class_embed.weight"], "DETR"),
        (["model.0.conv.weight", "model.2.cv1.conv.weight"], "Ultralytics YOLO"),
        (["encoder.conv1.weight", "segmentation_head.0.weight"], "a model of segmentation_models"),
        (["visual.conv1.weight", "transformer.resblocks.0.attn"], "CLIP"),
        (["backbone.stem.0.weight", "heads.detection.predict.weight"], "a visionkit model"),
        (["stem.0.weight", "trunk_output.block1.block1-0.f.a.0.weight"], "a RegNet"),
        (["a", "b"], ""),
    ],
)
def test_names_of_other_programs(names, kind):
    assert architecture(dict.fromkeys(names, torch.zeros(1))).startswith(kind)


def test_a_state_dict_is_found_under_the_usual_keys():
    state = {"a.weight": torch.zeros(1), "b.weight": torch.zeros(2)}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    for content in (state, {"state_dict": state}, {"model": {"state_dict": wrapped}, "epoch": 1}):
        assert state_dict_of(content).keys() == state.keys()
    for content in (None, [], {}, {"a": 1}, {"a": torch.zeros(1), "epoch": 3}):
        assert state_dict_of(content) is None
    assert content_kind({"epoch": 3}) == "a dict with epoch, not a state_dict"


@pytest.mark.parametrize("build", ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_weights_of_another_detector_are_an_error_with_its_name(build, tmp_path):
    theirs = getattr(models.detection, build)(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    spec = {
        "task": "detection",
        "backbone": {"type": "Torchvision", "name": "resnet50"},
        "head": {"type": "FasterRCNN"},
        "data": {"train": {"type": "Shapes"}, "val": None},
        "weights": str(tmp_path / "x.pth"),
    }
    config, classes = load_config(spec), {"detection": Classes.numbered("ab")}
    with pytest.raises(CheckpointError) as error:
        build_model(config, classes)
    assert f"looks like torchvision's {build};" in str(error.value)
    assert f"visionkit train {build} weights={tmp_path / 'x.pth'}" in str(error.value)
    assert "this model is detection (FasterRCNN) on Torchvision resnet50" in str(error.value)


def test_a_program_of_torch_export_is_named(tmp_path):
    path = tmp_path / "model.pt2"
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)
    with pytest.raises(CheckpointError, match=r"an exported program of torch\.export \(\.pt2\)"):
        checkpoint.load_latest(path)
