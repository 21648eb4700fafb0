"""Weights by `hf://` addresses: from a folder, from the cache, and from a stand-in server."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import visionkit
from support.backbones import pixels
from support.small_runs import SMALL_RUNS
from visionkit.cli.main import main
from visionkit.config.load import load_config, missing_paths
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.weights import read
from visionkit.runs import checkpoint, hub

COMMIT = "c0ffee" + "0" * 34
ERRORS = {  # repository: status, code
    "us/private": (401, "RepoNotFound"),
    "us/gated": (403, "GatedRepo"),
    "us/broken": (418, ""),
}


class Server(BaseHTTPRequestHandler):
    """Answers as the Hub does, from `files`: content by repository and name."""

    files: dict
    requests: list

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        self.requests.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            names = [{"type": "file", "path": n, "oid": "0" * 40, "size": 1} for r, n in self.files]
            found = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": n["path"]} for n in names],
            }
            content, status, code = json.dumps(names if "tree" in parts else found), 200, ""
            content = content.encode()
        else:
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            content = self.files.get((repo, name), b"")
            status, code = ERRORS.get(repo, (404, "RepoNotFound"))
            if repo in {r for r, _ in self.files}:
                status, code = (200, "") if content else (404, "EntryNotFound")
                if revision not in ("main", "v1", COMMIT):
                    status, code = 404, "RevisionNotFound"
        self.send_response(status)
        content = content if status == 200 else b"{}"
        for key, value in {
            "Content-Length": str(len(content)),
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hash(content) & 0xFFFFFFFF:08x}"',
            **({"X-Error-Code": code} if code else {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    kind = type("Stand-in", (Server,), {"files": {}, "requests": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("VISIONKIT_WEIGHTS", "VISIONKIT_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield kind
    running.shutdown()
    running.server_close()
    thread.join()


def saved(tensors, path):
    torch.save(tensors, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "text, parts",
    [
        ("hf://us/net", ("us/net", None, "model.safetensors")),
        ("hf:/us/net/w.pt", ("us/net", None, "w.pt")),  # as a Path writes it
        ("hf://us/net-1.0@v1/a/b.pth", ("us/net-1.0", "v1", "a/b.pth")),
        ("hf://us/net@refs%2Fpr%2F1", ("us/net", "refs/pr/1", "model.safetensors")),
    ],
)
def test_addresses(text, parts):
    assert hub.is_hub(text) and hub.parse(text) == parts
    assert hub.parse(str(hub.parse(text))) == parts


@pytest.mark.parametrize(
    "text",
    ["hf://us", "hf://us/", "hf://us/net/../w.pt", "hf://us/../w.pt", "hf://us/net//w", "hf:/"],
)
def test_other_forms_are_refused(text):
    with pytest.raises(ConfigError, match=r"expected hf://owner/name"):
        hub.parse(text)


def test_a_file_is_downloaded_once_and_then_in_the_cache(server, tmp_path, monkeypatch):
    content = saved({"w": torch.arange(3.0)}, tmp_path / "w.pt")
    server.files["us/net", "weights/w.pt"] = content
    assert torch.equal(read("hf://us/net/weights/w.pt")["w"], torch.arange(3.0))
    assert torch.equal(read("hf://us/net@v1/weights/w.pt")["w"], torch.arange(3.0))
    monkeypatch.setenv("VISIONKIT_OFFLINE", "1")
    server.requests.clear()
    assert hub.fetch("hf://us/net/weights/w.pt").read_bytes() == content
    assert not server.requests
    with pytest.raises(CheckpointError, match=r"downloads are off \(--offline or VISIONKIT_OFF"):
        hub.fetch("hf://us/net/other.pt")


@pytest.mark.parametrize(
    "address, words",
    [
        ("hf://us/absent", "repository not found, or private: log in"),
        ("hf://us/private", "repository not found, or private: log in"),
        ("hf://us/gated", "asks for consent: accept the conditions on the page of us/gated"),
        ("hf://us/net@v9", "the repository has no revision 'v9'"),
        ("hf://us/net", "has no file 'model.safetensors'; it has weights/w.pt"),
        ("hf://us/broken", "answers 418"),
        ("hf://us/-net.", "is not a name of a repository"),
    ],
)
def test_each_failure_has_its_words(server, address, words):
    server.files["us/net", "weights/w.pt"] = b"x"
    server.files["us/net", "README.md"] = b"x"
    with pytest.raises(CheckpointError) as error:
        hub.fetch(address)
    assert words in str(error.value) and str(error.value).startswith("hf://us/")
    assert "VISIONKIT_WEIGHTS" in str(error.value)


def test_no_network(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its tries
    with pytest.raises(CheckpointError, match=r"no answer from http://127\.0\.0\.1:9: .*refused"):
        hub.fetch("hf://us/net")


def test_a_folder_is_searched_first(server, tmp_path, monkeypatch):
    for name in ("us/net", "us/net@v1"):
        (tmp_path / name).mkdir(parents=True)
        torch.save({"w": torch.full((1,), float(len(name)))}, tmp_path / name / "w.pt")
    monkeypatch.setenv("VISIONKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert read("hf://us/net/w.pt")["w"] == 6 and read("hf://us/net@v1/w.pt")["w"] == 9
    assert not server.requests
    with pytest.raises(CheckpointError, match=r'pip install "visionkit-torch\[hub\]"'):
        read("hf://us/other/w.pt")


def test_a_page_instead_of_a_file_is_named(server):
    server.files["us/net", "w.pt"] = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(CheckpointError, match="looks like an HTML page"):
        read("hf://us/net/w.pt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = visionkit.train({**SMALL_RUNS["fcos"], "output": str(folder / "run")}).directory
    return run, checkpoint.export(run, folder / "model.safetensors").read_bytes()


def test_a_config_and_load_take_an_address(server, exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    run, server.files["us/net", "model.safetensors"] = exported
    image = pixels(1, 3, 32, 48)[0]
    want, got = (visionkit.load(source).predict(image) for source in (run, "hf://us/net"))
    assert torch.equal(want.boxes, got.boxes)
    config = {**SMALL_RUNS["fcos"], "weights": "hf://us/net", "output": str(tmp_path / "new")}
    config["train"] = {**config["train"], "steps": 1}
    assert not missing_paths(load_config(config))
    visionkit.train(config)
    (tmp_path / "c.yaml").write_text(json.dumps({**config, "weights": "hf://us/absent"}))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "c.yaml", "--overwrite"]) == 4
    assert "hf://us/absent/model.safetensors: http://127" in capsys.readouterr().err


def test_the_weights_command_takes_an_address(server, tmp_path, capsys):
    server.files["us/net", "w.pt"] = saved({"w": torch.zeros(3)}, tmp_path / "w.pt")
    assert main(["weights", "fetch", "hf://us/net/w.pt"]) == 0
    path = capsys.readouterr().out.removeprefix("hf://us/net/w.pt: ").strip()
    assert path.startswith(str(tmp_path / "hub")) and path.endswith("w.pt")
    assert main(["weights", "verify", "hf://us/net/w.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["numbers"] == 3
    server.requests.clear()
    assert main(["weights", "fetch", "hf://us/net/w.pt", "no_such_net"]) == 2
    assert main(["weights", "fetch", "hf://us"]) == 2
    assert not server.requests
