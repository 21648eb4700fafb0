"""`backbone.weights` by name: the published weights of that backbone, and no other."""

import os
import re
import socket

import pytest
import torch
from torchvision import models

from support.published import empty_hub, publish, save_as_published, serving
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.timm import Timm
from visionkit.models.backbones.torchvision import Torchvision

NAME = "squeezenet1_1"
MEMBER = "SqueezeNet1_1_Weights.IMAGENET1K_V1"


@pytest.fixture
def file(tmp_path):
    return save_as_published(models.squeezenet1_1().state_dict(), tmp_path / "published", NAME)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return empty_hub(monkeypatch, tmp_path / "hub")


@pytest.mark.parametrize("weights", ["default", NAME, MEMBER])
def test_a_name_gives_the_published_weights(weights, file, hub, monkeypatch):
    expected = Torchvision(name=NAME, weights=str(file)).state_dict()
    with serving({f"/{file.name}": file.read_bytes()}) as (url, asked):
        publish(monkeypatch, NAME, file, url)
        for _ in range(2):
            found = Torchvision(name=NAME, weights=weights).state_dict()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(asked) == 1 and os.listdir(hub) == [file.name]


def test_a_file_of_that_name_wins(file, hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file.rename(tmp_path / NAME)
    assert Torchvision(name=NAME, weights=NAME) and not hub.exists()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()  # a folder does not
    monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="is not at hand"):
        Torchvision(name=NAME, weights=NAME)


@pytest.mark.parametrize(
    ("weights", "kind", "message"),
    [
        ("resnet50", CheckpointError, "V2 is of resnet50, and this backbone is squeezenet1_1"),
        ("fcos_resnet50_fpn", CheckpointError, "weights of a whole model go into `weights`"),
        ("squeezenet", ConfigError, r"published as 'squeezenet'; nearest: squeezenet1_\d, "),
        ("squeezenet.pth", CheckpointError, "backbone.weights: squeezenet.pth: not found"),
        ("no/resnet50", CheckpointError, "backbone.weights: no/resnet50: not found"),
    ],
)
def test_other_names_are_errors(weights, kind, message, hub):
    with pytest.raises(kind, match=message):
        Torchvision(name=NAME, weights=weights)
    assert not hub.exists()


def test_without_a_download_the_error_says_what_training_can_do(hub, monkeypatch):
    monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        Torchvision(name=NAME, weights="default")
    instead = "give its path (backbone.weights=PATH), or start at random (backbone.weights: null)"
    assert str(caught.value).endswith(f", or {instead}")


def test_timm_downloads_nothing_offline(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    connections = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: connections.append(a) or [])
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="downloads are off"):
        Timm(name="resnet18", weights="default")
    assert not connections and hub.constants.HF_HUB_OFFLINE is False


class Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_published_pickle_does_not_run(tmp_path, hub, monkeypatch):
    state = {"conv1.weight": Touch(tmp_path / "ran")}
    file = save_as_published(state, tmp_path / "published", NAME)
    with serving({f"/{file.name}": file.read_bytes()}) as (url, _):
        publish(monkeypatch, NAME, file, url)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(hub))}.*cannot be read"):
            Torchvision(name=NAME, weights="default")
    assert not (tmp_path / "ran").exists()
