"""Published weights: what there is, and a file that arrives whole and right or not at all."""

import multiprocessing
import os
import re
import signal
import socket
import threading
import urllib.request

import pytest
import torch
import torchvision
from torchvision.models import get_weight

from support.published import empty_hub, publish, save_as_published, serving
from visionkit.config.shipped import shipped_configs
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models import published
from visionkit.models.published import entries, fetch, find

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of that network's weights, named as published ones are."""
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1().state_dict()
    return save_as_published(state, tmp_path_factory.mktemp("published"), NAME)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return empty_hub(monkeypatch, tmp_path / "hub")


# --- what there is ---


def test_entries_are_torchvisions():
    assert len({one.member for one in entries()}) == len(entries()) > 60
    for one in (one for one in entries() if not one.on_hub):
        theirs = get_weight(one.member)
        assert one.url == theirs.url and re.fullmatch(r"[0-9a-f]{8,}", one.checksum), one
        assert f"-{one.checksum}." in one.file
        assert one.size == theirs.meta["_file_size"] > 1
        assert one.license == theirs.meta.get("license", "")
        assert one.default == (theirs == torchvision.models.get_model_weights(one.name).DEFAULT)


def test_whole_models_are_those_with_a_config():
    whole = {one.name for one in entries() if one.kind == "model"}
    assert whole >= {"fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"}
    shipped = shipped_configs().items()
    folders = {"torchvision", "transformers"}
    assert whole == {name for name, path in shipped if path.parts[-2] in folders}
    assert "keypointrcnn_resnet50_fpn" not in whole


def test_metrics_are_published_ones():
    found = find("maskrcnn_resnet50_fpn")
    assert found.metrics == {"box AP": 37.9, "mask AP": 34.6} and found.dataset == "COCO-val2017"
    assert len(found.classes) == 91 and found.classes[1] == "person"
    assert find("resnet50").metrics["top-1"] == 80.858


def test_a_name_means_the_default_and_a_member_itself():
    assert find("resnet50").member == "ResNet50_Weights.IMAGENET1K_V2"
    assert find("ResNet50_Weights.IMAGENET1K_V1").file == "resnet50-0676ba61.pth"


def test_an_unknown_name_is_answered_with_the_nearest_three():
    with pytest.raises(ConfigError, match="no weights are published as 'maskrcnn_resnet50'") as e:
        find("maskrcnn_resnet50")
    nearest = re.search(r"nearest: (.*);", str(e.value))[1].split(", ")
    assert len(nearest) == 3 and nearest[0] == "maskrcnn_resnet50_fpn"


# --- fetching ---


def test_it_is_fetched_once(file, hub, monkeypatch, caplog):
    with serving({f"/{file.name}": file.read_bytes()}) as (url, asked), caplog.at_level("INFO"):
        one = publish(monkeypatch, NAME, file, url)
        assert fetch(one) == fetch(one) == hub / file.name
    assert asked == [f"/{file.name}"]
    assert (hub / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in hub.iterdir()] == [file.name]
    assert caplog.text.count("downloading http://127.0.0.1") == 1


def test_a_folder_is_searched_first(file, hub, monkeypatch):
    one = publish(monkeypatch, NAME, file)
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(file.parent))
    assert fetch(one) == file and not hub.exists()
    assert published.folders() == [file.parent, hub]
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(file))
    with pytest.raises(ConfigError, match=r"VISIONKIT_WEIGHTS: got .*; expected a folder, or a"):
        fetch(one)


def test_a_mirror_is_asked_first(file, hub, monkeypatch):
    content = {f"/files/{file.name}": file.read_bytes()}
    with serving(content) as (url, asked), serving({f"/{file.name}": file.read_bytes()}) as other:
        one = publish(monkeypatch, NAME, file, other[0])
        monkeypatch.setenv("VISIONKIT_WEIGHTS", f"{url}/files/")
        assert fetch(one) == hub / file.name
        assert asked == [f"/files/{file.name}"] and not other[1]
        (hub / file.name).unlink()
        monkeypatch.setenv("VISIONKIT_WEIGHTS", f"{url}/elsewhere")
        assert fetch(one) == hub / file.name
        assert asked[1:] == [f"/elsewhere/{file.name}"] and other[1] == [f"/{file.name}"]


def test_offline_only_what_is_at_hand_is_used(file, hub, monkeypatch):
    with serving({f"/{file.name}": file.read_bytes()}) as (url, asked):
        one = publish(monkeypatch, NAME, file, url)
        monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
        with pytest.raises(CheckpointError, match="is not at hand, and downloads are off") as e:
            fetch(one)
        assert str(hub) in str(e.value) and one.url in str(e.value)
        assert not asked and not hub.exists()
        monkeypatch.setenv("VISIONKIT_OFFLINE", "0")
        fetch(one)
        monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
        assert fetch(one) == hub / file.name


# --- what goes wrong: nothing is left in the folder, and the message says what to do ---


def closes(handler):
    handler.connection.close()


def cut(content):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])

    return answer


def status(code):
    return lambda handler: handler.send_error(code)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(64):
        handler.wfile.write(bytes(1 << 20))


def to_nowhere(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/x")
    handler.end_headers()


FAULTS = {
    "cut": (lambda content: cut(content), r"the download was cut after \d+ of \d+ bytes"),
    "changed": (lambda content: content[:-1] + b"!", r"wrong checksum: its SHA-256 begins with"),
    "page": (lambda _: b"<!DOCTYPE html><html>log in", "wrong checksum: it is an HTML page"),
    "pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    "empty": (lambda _: b"", "wrong checksum: it is an empty file"),
    "missing": (lambda _: None, "the server answers 404: the file is not there"),
    "forbidden": (lambda _: status(403), "the server answers 403: it refuses the download"),
    "busy": (lambda _: status(503), "the server answers 503"),
    "closed": (lambda _: closes, "the connection broke: RemoteDisconnected"),
    "endless": (lambda _: endless, r"more than the \d+ MB of the file"),
    "redirect": (lambda _: to_nowhere, "no connection: Connection refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_leaves_nothing(fault, file, hub, monkeypatch):
    answer, message = FAULTS[fault]
    with serving({f"/{file.name}": answer(file.read_bytes())}) as (url, _):
        one = publish(monkeypatch, NAME, file, url)
        with pytest.raises(CheckpointError, match=message) as e:
            fetch(one)
    assert not os.listdir(hub)
    for part in (one.member, one.url, str(hub), "VISIONKIT_WEIGHTS"):
        assert part in str(e.value)
    assert "null" not in str(e.value)  # nobody trains here


def test_without_a_network(file, hub, monkeypatch):
    one = publish(monkeypatch, NAME, file)
    with pytest.raises(CheckpointError, match="no connection: Connection refused"):
        fetch(one)
    one = publish(monkeypatch, one.member, file, "http://no-such-host.invalid")
    with pytest.raises(CheckpointError, match="no connection: "):
        fetch(one)
    assert not os.listdir(hub)


def test_the_proxy_is_named_without_its_password(file, hub, monkeypatch):
    def refused(handler):
        handler.send_error(407)

    def new_settings():
        monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the first ones

    with serving({f"http://weights.invalid/{file.name}": refused}) as (url, _):
        new_settings()
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:s3cret@"))
        one = publish(monkeypatch, NAME, file, "http://weights.invalid")
        with pytest.raises(CheckpointError, match=f"answers 407 through the proxy {url}: the"):
            fetch(one)
        monkeypatch.setenv("http_proxy", "http://me:s3cret@127.0.0.1:9")
        new_settings()
        with pytest.raises(CheckpointError, match="no connection through the proxy") as e:
            fetch(one)
    assert "s3cret" not in str(e.value) and not os.listdir(hub)


def test_a_mirror_that_fails_is_named_too(file, hub, monkeypatch):
    one = publish(monkeypatch, NAME, file)
    monkeypatch.setenv("VISIONKIT_WEIGHTS", "http://me:s3cret@127.0.0.1:9/w")
    with pytest.raises(CheckpointError) as e:
        fetch(one)
    assert f"http://127.0.0.1:9/w/{one.file}: " in str(e.value) and f"{one.url}: " in str(e.value)
    assert "s3cret" not in str(e.value)


@pytest.mark.parametrize(
    "mirror", ["http://[bad", "http://127.0.0.1:port", "https://", "file:///no"]
)
def test_a_mirror_that_is_no_address(mirror, file, hub, monkeypatch):
    one = publish(monkeypatch, NAME, file)
    monkeypatch.setenv("VISIONKIT_WEIGHTS", mirror)
    with pytest.raises(CheckpointError, match=re.escape(f"{mirror.rstrip('/')}/{file.name}: ")):
        fetch(one)
    assert not os.listdir(hub)


def test_a_folder_that_cannot_be_written(file, hub, monkeypatch, tmp_path):
    with serving({f"/{file.name}": file.read_bytes()}) as (url, _):
        one = publish(monkeypatch, NAME, file, url)
        hub.parent.write_text("a file")
        with pytest.raises(CheckpointError, match="hub/checkpoints cannot be made: "):
            fetch(one)
        hub.parent.unlink()
        hub.mkdir(parents=True)
        hub.chmod(0o500)
        if os.access(hub, os.W_OK):  # root may write anywhere

            def refuse(*_, **__):
                raise PermissionError(13, "Permission denied", str(hub / one.file))

            monkeypatch.setattr(published.download.files, "replacing", refuse)
        with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
            fetch(one)
        hub.chmod(0o700)
    assert not os.listdir(hub)


def test_a_damaged_file_at_hand_is_named_and_left_to_the_user(file, hub, monkeypatch):
    one = publish(monkeypatch, NAME, file)
    hub.mkdir(parents=True)
    (hub / file.name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=rf"{file.name} is damaged .*delete it"):
        fetch(one)
    assert (hub / file.name).read_bytes() == b"damaged"


# --- several processes, and interruptions ---


def fetching(one, count=1):
    """Processes that fetch, forked because importing torch takes seconds."""
    context = multiprocessing.get_context("fork")
    found = [context.Process(target=fetch, args=(one,), daemon=True) for _ in range(count)]
    for process in found:
        process.start()
    return found


def test_one_of_several_processes_downloads(file, hub, monkeypatch):
    """As torchrun's ranks on a machine do; the others wait and use what it fetched."""

    def slow(handler):
        content = file.read_bytes()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content[:-1])
        threading.Event().wait(0.5)
        handler.wfile.write(content[-1:])

    with serving({f"/{file.name}": slow}) as (url, asked):
        processes = fetching(publish(monkeypatch, NAME, file, url), count=3)
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(asked) == 1 and os.listdir(hub) == [file.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_download_leaves_nothing(number, file, hub, monkeypatch):
    begun, forever = threading.Event(), threading.Event()

    def hang(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(bytes(2 << 20))
        begun.set()
        forever.wait(60)

    with serving({f"/{file.name}": hang}) as (url, _):
        one = publish(monkeypatch, NAME, file, url)
        (process,) = fetching(one)
        assert begun.wait(60)
        threading.Event().wait(0.2)
        assert [name for name in os.listdir(hub) if ".tmp." in name]  # the control
        os.kill(process.pid, number)
        process.join(60)
        forever.set()
    assert process.exitcode and not process.is_alive()
    if number == signal.SIGINT:
        assert not os.listdir(hub)
    else:  # the process is gone at once; the next one that downloads removes what it left
        with serving({f"/{file.name}": file.read_bytes()}) as (url, _):
            fetch(publish(monkeypatch, one.member, file, url))
        assert os.listdir(hub) == [file.name]


def test_a_server_that_stops_answering_is_left(file, hub, monkeypatch):
    monkeypatch.setattr(published.download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = publish(monkeypatch, NAME, file, f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=r"no answer for 0\.2 seconds|timed out"):
            fetch(one)
    assert not os.listdir(hub)
