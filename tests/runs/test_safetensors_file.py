"""Weights in `.safetensors` files: in, out, and clear about damage."""

import json
import sys

import pytest
import torch
from torchvision import models

import visionkit
from support.backbones import pixels, saved_classifier
from support.small_runs import SMALL_RUNS
from visionkit.cli.main import main
from visionkit.errors import ArgumentError, CheckpointError
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.build import build_model
from visionkit.models.weights import load_model_weights
from visionkit.runs import checkpoint, safetensors_file
from visionkit.types import Classes

torch_files = pytest.importorskip("safetensors.torch")


def raw(header, content=b"", length=None):
    """A file by its parts."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


ONE = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def test_tensors_of_any_layout_round_trip_whatever_the_name(tmp_path):
    state = {
        "conv": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "half": torch.randn(5).bfloat16(),
        "counter": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    state["tied"] = state["half"][1:]
    path = tmp_path / "weights.pt"  # it is told by its content
    safetensors_file.write({"format": 1, "config": {}, "classes": {}, "model": state}, path)
    content = checkpoint.load_tensors(path)
    assert content.keys() == {"format", "config", "classes", "model"}
    assert content["model"].keys() == state.keys()
    for name, tensor in state.items():
        assert content["model"][name].dtype == tensor.dtype
        assert torch.equal(content["model"][name], tensor)
    assert torch_files.load_file(path)["tied"].shape == (4,)  # the package itself reads it
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(
    "content, words",
    [
        (raw(ONE, bytes(3)), "truncated: it has 72 bytes, and its header names 73"),
        (raw(ONE, bytes(5)), "damaged: it has 74 bytes, and its header names 73"),
        (raw(ONE)[:30], "truncated: it ends within its header, after 30 bytes"),
        (raw(ONE)[:9], "truncated: it ends within its header, after 9 bytes"),
        (raw(ONE, bytes(4), length=1 << 33), "damaged: its header claims 8,589,934,592 bytes"),
        (raw(b'{"w": }'), "damaged: its header is not that of tensors"),
        (raw(b'{"w": ' + b"[" * 9000), "damaged: its header is not that of tensors"),
        (raw({"w": 3}), "damaged: its header is not that of tensors"),
        (raw({"__metadata__": [1]}), "damaged: its header is not that of tensors"),
        (raw({"w": {**ONE["w"], "dtype": "F99"}}, bytes(4)), "damaged (.*F99"),
        (raw({"w": {**ONE["w"], "shape": [2]}}, bytes(4)), "damaged (.*"),
        (
            raw({"__metadata__": {"visionkit": "no"}, **ONE}, bytes(4)),
            "metadata 'visionkit' is not",
        ),
        (raw({"__metadata__": {"visionkit": "[1]"}, **ONE}, bytes(4)), "'visionkit' is not JSON"),
    ],
)
def test_damage_is_named_by_its_kind(tmp_path, content, words):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    pattern = rf"w\.safetensors: cannot be read as weights: it is .*{words.replace('(', '[(]')}"
    with pytest.raises(checkpoint.DamagedError, match=pattern):
        checkpoint.load_tensors(path)
    with pytest.raises(CheckpointError, match=pattern):
        Torchvision(weights=str(path))


def test_a_text_with_a_brace_at_the_ninth_place_is_no_such_file(tmp_path):
    (tmp_path / "w.pt").write_text('[[[[[[[[{"a": 1}]]]]]]]]')
    with pytest.raises(CheckpointError, match="looks like a text file"):
        checkpoint.load_tensors(tmp_path / "w.pt")


def test_the_package_is_optional(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(raw(ONE, bytes(4)))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r'pip install "visionkit-torch\[safetensors\]"'):
        checkpoint.load_tensors(tmp_path / "w.safetensors")


def test_a_backbone_starts_from_such_a_file(tmp_path):
    model, _ = saved_classifier(tmp_path, "resnet18")
    path = tmp_path / "resnet.safetensors"
    torch_files.save_file(model.state_dict(), path)
    body = Torchvision(weights=str(path)).body
    assert torch.equal(body.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    with pytest.raises(CheckpointError, match="looks like a ResNet-18"):
        Torchvision(name="resnet34", weights=str(path))
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18")
    torch_files.save_file(model.state_dict(), path)
    assert torch.equal(
        Timm(name="resnet18", weights=str(path)).body.conv1.weight, model.conv1.weight
    )


def test_a_detector_of_torchvision_starts_from_such_a_file(tmp_path):
    """As from the same tensors in a file of torch."""
    theirs = models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)
    config = visionkit.load_config("lraspp_mobilenet_v3_large")
    classes = {"semantic_segmentation": Classes.numbered(f"c{i}" for i in range(21))}
    found = []
    torch_files.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    for name in ("model.pt", "model.safetensors"):
        model = build_model(config, classes, pretrained=False)
        load_model_weights(model, str(tmp_path / name), classes)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return visionkit.train({**SMALL_RUNS["fcos"], "output": str(folder / "run")}).directory


def test_an_exported_run_predicts_and_is_scored_as_before(tmp_path, run):
    path = checkpoint.export(run, tmp_path / "model.safetensors")
    image = pixels(1, 3, 32, 48)[0]
    want, got = (visionkit.load(source).predict(image) for source in (run, path))
    for head in want:
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(want[head][key], got[head][key])
    assert checkpoint.load_run(path)["config"] == checkpoint.load_latest(run)[1]["config"]
    for again in (path, tmp_path / "model.pt"):
        with pytest.raises(ArgumentError, match=r"exists; delete it|ends in \.safe"):
            checkpoint.export(run, again)


def test_the_command_writes_a_file_and_never_replaces_one(tmp_path, run, capsys):
    path = tmp_path / "model.safetensors"
    assert main(["weights", "export", str(run), str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    before = path.read_bytes()
    assert main(["weights", "export", str(run), str(path)]) == 2
    assert main(["weights", "export", str(run.parent), str(tmp_path / "b.safetensors")]) == 4
    assert main(["weights", "export", str(run), str(tmp_path / "no" / "b.safetensors")]) == 4
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == [path]


def test_rows_of_classes_go_by_name_from_an_exported_run(tmp_path, run):
    path = checkpoint.export(run, tmp_path / "model.safetensors")
    config = {**SMALL_RUNS["fcos"], "weights": str(path)}
    names = [*checkpoint.load_run(path)["classes"]["detection"]["names"]]
    model = build_model(
        visionkit.load_config(config), {"detection": Classes.numbered(["new", *names[::-1]])}
    )
    old = checkpoint.load_tensors(path)["model"]
    layer = next(iter(model.head("detection").class_layers))
    key = f"heads.detection.{layer}.bias"
    rows = model.head("detection").class_layers[layer]
    assert rows == 1
    assert torch.equal(model.state_dict()[key][1:], old[key].flip(0))
