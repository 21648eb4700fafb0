"""`visionkit weights`, and commands with the name of a published model instead of a run."""

import argparse
import json
import os
import re

import pytest
import torch
from torchvision import models

import visionkit
from support.published import empty_hub, publish, save_as_published, serving
from support.small_runs import SMALL_RUNS
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.models.build import build_model
from visionkit.models.published import entries, find
from visionkit.types import Classes

NAME = "squeezenet1_1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return empty_hub(monkeypatch, tmp_path / "hub")


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    return save_as_published(models.squeezenet1_1().state_dict(), tmp_path / "published", NAME)


def said(capsys, *words, code=0):
    assert main(["weights", *map(str, words)]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err if code else printed.out


def test_the_list_has_all_in_words_and_as_json(hub, capsys):
    text = said(capsys, "list")
    row = next(line for line in text.splitlines() if line.split()[:1] == ["maskrcnn_resnet50_fpn"])
    assert re.search(r"box AP 37\.9, mask AP 34\.6 +170 +no +not stated$", row)
    swag = next(
        line for line in text.splitlines() if "RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E" in line
    )
    assert swag.endswith("facebookresearch/SWAG/blob/main/LICENSE")
    assert "states no license for most of its weights" in text
    found = json.loads(said(capsys, "list", "--json"))
    assert [one["weights"] for one in found] == [one.member for one in entries()]
    one = next(one for one in found if one["name"] == "maskrcnn_resnet50_fpn")
    assert one["config"] == one["name"] and one["license"] is None and one["file"] is None
    assert one["metrics"] == {"box AP": 37.9, "mask AP": 34.6} and one["size_mb"] == 169.84


def test_the_list_takes_a_pattern(hub, capsys):
    found = json.loads(said(capsys, "list", "resnet18", "--json"))
    assert [one["name"] for one in found] == ["resnet18"]
    found = json.loads(said(capsys, "list", "fcn_*", "--json"))
    assert {one["name"] for one in found} == {"fcn_resnet50", "fcn_resnet101"}
    assert "none match 'resnt18'; nearest: resnet18, " in said(capsys, "list", "resnt18", code=2)


def test_the_list_of_timm_has_its_licenses(hub, capsys):
    timm = pytest.importorskip("timm")
    found = json.loads(said(capsys, "list", "--timm", "resnet50.*", "--json"))
    assert [one["name"] for one in found] == timm.list_pretrained("resnet50.*")
    one = next(one for one in found if one["name"] == "resnet50.a1_in1k")
    assert one == {"name": "resnet50.a1_in1k", "license": "apache-2.0",
                   "from": "hf://timm/resnet50.a1_in1k"}  # fmt: skip
    text = said(capsys, "list", "--timm", "resnet50.a1_in1k")
    assert re.search(r"resnet50\.a1_in1k +apache-2\.0 +hf://timm/resnet50", text)


def test_fetch_verify_and_where(file, hub, capsys, monkeypatch):
    where = json.loads(said(capsys, "where", "--json"))
    assert where == {"folders": [str(hub)], "mirror": None, "offline": False}
    with serving({f"/{file.name}": file.read_bytes()}) as (url, asked):
        one = publish(monkeypatch, NAME, file, url)
        text = said(capsys, "fetch", NAME, "--offline", code=4)
        assert "downloads are off (--offline or VISIONKIT_OFFLINE)" in text and not asked
        assert "VISIONKIT_OFFLINE" not in os.environ
        assert said(capsys, "fetch", NAME) == f"{one.member}: {hub / file.name}\n"
        assert said(capsys, "fetch", NAME, one.member, "--offline").count(str(hub)) == 2
    assert json.loads(said(capsys, "list", NAME, "--json"))[0]["file"] == str(hub / file.name)
    text = said(capsys, "verify", hub / file.name)
    assert "checksum:     ok" in text and one.member in text
    words = f"backbone.type=Torchvision backbone.name={NAME} backbone.weights={hub / file.name}"
    assert f"load it with: {words}\n" in text and "values:       finite" in text
    monkeypatch.setenv("VISIONKIT_WEIGHTS", "https://me:s3cret@mirror.invalid/w")
    text = said(capsys, "where")
    assert "mirror.invalid/w, then from torchvision's" in text and "s3cret" not in text


def test_names_are_checked_before_any_download(hub, capsys):
    text = said(capsys, "fetch", "resnet18", "resnet81", code=2)
    assert "no weights are published as 'resnet81'; nearest: resnet18, " in text
    assert not hub.exists()
    text = said(capsys, "fetch", "keypointrcnn_resnet50_fpn", code=2)
    assert "no weights are published as 'keypointrcnn_resnet50_fpn'" in text


def test_verify_knows_a_whole_model(tmp_path, hub, capsys):
    state = models.get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "mine.pth")
    facts = json.loads(said(capsys, "verify", tmp_path / "mine.pth", "--json"))
    assert facts["architecture"] == facts["config"] == ["fcos_resnet50_fpn"]
    assert facts["checksum"] == "unknown" and facts["published_as"] is None
    assert facts["tensors"] == len(state)
    text = said(capsys, "verify", tmp_path / "mine.pth")
    assert f"visionkit train fcos_resnet50_fpn weights={tmp_path / 'mine.pth'}" in text
    published = tmp_path / find("fcos_resnet50_fpn").file
    (tmp_path / "mine.pth").rename(published)
    assert main(["weights", "verify", str(published)]) == 4
    printed = capsys.readouterr()
    assert (
        "checksum:     WRONG" in printed.out and "is not the file that is published" in printed.err
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_0",
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    ],
)
def test_verify_knows_a_classifier_and_what_it_advises_loads(name, tmp_path, hub, capsys):
    file = tmp_path / "mine.pth"
    state = models.get_model(name, weights=None, num_classes=7).state_dict()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, file)
    facts = json.loads(said(capsys, "verify", file, "--json"))
    assert facts["architecture"] == [name] and facts["config"] == []
    (advised,) = facts["load_with"]
    assert advised == f"backbone.type=Torchvision backbone.name={name} backbone.weights={file}"
    assert facts["not_finite"] == []
    config = load_config("classification", advised.split())
    build_model(config, {"classification": Classes.numbered("ab")})


def test_verify_knows_a_checkpoint_of_visionkit(tmp_path, hub, capsys):
    run = visionkit.train(
        {**SMALL_RUNS["classification"], "output": str(tmp_path / "run")}
    ).directory
    file = run / "checkpoints" / "best.pt"
    facts = json.loads(said(capsys, "verify", file, "--json"))
    assert facts["kind"].startswith("a visionkit checkpoint of classification (Classification) on ")
    text = said(capsys, "verify", file)
    assert f"load it with: visionkit predict {file} IMAGES --out DIR or weights={file}\n" in text
    state = torch.load(file)
    torch.save(state | {"config": {"heads": ["x"], "backbone": "y"}}, file)
    assert said(capsys, "verify", file)


def test_verify_names_tensors_that_are_not_finite(tmp_path, hub, capsys):
    state = models.resnet18().state_dict()
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    state["fc.bias"][3] = -torch.inf
    torch.save(state, tmp_path / "mine.pth")
    assert main(["weights", "verify", str(tmp_path / "mine.pth")]) == 4
    printed = capsys.readouterr()
    assert "values:       NaN or infinite in 2 tensors\n" in printed.out
    assert "has NaN or infinite values in 2 tensors: conv1.weight, fc.bias; " in printed.err
    assert main(["weights", "verify", str(tmp_path / "mine.pth"), "--json"]) == 4
    facts = json.loads(capsys.readouterr().out.splitlines()[0])
    assert facts["not_finite"] == ["conv1.weight", "fc.bias"]


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\x80\x04}."])
def test_verify_refuses_what_has_no_weights(content, tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(content)
    assert "w.pth" in said(capsys, "verify", tmp_path / "w.pth", code=4)
    assert "not found" in said(capsys, "verify", tmp_path / "no.pth", code=4)
