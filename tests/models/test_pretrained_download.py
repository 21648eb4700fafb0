"""`weights: default`: fetched once, compared to its checksum, kept whole or not at all."""

import hashlib
import os
import socket
import threading
from types import SimpleNamespace

import pytest
import torch
from torchvision import models

from visionkit.errors import CheckpointError
from visionkit.models.backbones import weights
from visionkit.models.backbones.torchvision import Torchvision


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Says where the default weights are published, and gives torch's empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def publish(url):
        default = SimpleNamespace(DEFAULT=SimpleNamespace(url=url))
        monkeypatch.setattr(weights, "get_model_weights", lambda arch: default)
        return tmp_path / "hub" / "checkpoints"

    return publish


@pytest.fixture
def good(tmp_path):
    """A file of SqueezeNet's weights and the name that it is published by."""
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "file")
    checksum = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    return (tmp_path / "file").rename(tmp_path / f"squeezenet1_1-{checksum}.pth")


def served(answer):
    """The address of a server that gives one answer."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        client, _ = server.accept()
        with client, server:
            client.recv(65536)
            client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_it_is_fetched_once(good, published, monkeypatch):
    cache = published(good.as_uri())
    expected = Torchvision(name="squeezenet1_1", weights=str(good)).state_dict()
    for _ in range(2):
        found = Torchvision(name="squeezenet1_1", weights="default").state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert [path.name for path in cache.iterdir()] == [good.name]
        monkeypatch.setattr(torch.hub, "download_url_to_file", None)


def test_without_a_network_the_remedies_are_told(published):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    cache = published(f"http://127.0.0.1:{port}/resnet18-f37072fd.pth")
    with pytest.raises(CheckpointError) as caught:
        weights.download("resnet18")
    for part in ("resnet18", f"http://127.0.0.1:{port}/resnet18", "give its path", "weights: null"):
        assert part in str(caught.value)
    assert not os.listdir(cache)


def test_what_arrives_in_part_or_changed_is_not_kept(good, published):
    body = good.read_bytes()
    head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    for content in (body[:5000], body[:-1] + b"!"):
        cache = published(f"{served(head + content)}/{good.name}")
        with pytest.raises(CheckpointError, match=r"could not be downloaded.*(hash|retrieval)"):
            weights.download("squeezenet1_1")
        assert not os.listdir(cache)
    published(f"{served(head + body)}/{good.name}")  # the control
    assert "features.0.weight" in weights.download("squeezenet1_1")
    assert os.listdir(cache) == [good.name]


def test_a_damaged_file_in_the_cache_is_named_and_left_to_the_user(good, published):
    cache = published(good.as_uri())
    weights.download("squeezenet1_1")
    (cache / good.name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=rf"{good.name} is damaged .*delete it"):
        weights.download("squeezenet1_1")
    assert (cache / good.name).read_bytes() == b"damaged"


class Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_published_pickle_does_not_run(tmp_path, published):
    torch.save({"conv1.weight": Touch(tmp_path / "ran")}, tmp_path / "file")
    checksum = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "file").rename(tmp_path / f"resnet18-{checksum}.pth")
    published(file.as_uri())
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights.download("squeezenet1_1")
    assert not (tmp_path / "ran").exists()
