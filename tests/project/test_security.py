"""Nothing that a file says is run: the source has no call that could, and payloads stay cold."""

import ast
import io
import json
import os
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch

from support.paths import ROOT
from visionkit.cli.main import main
from visionkit.config import load_config
from visionkit.data.loading import cache
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.plain import TinyCNN
from visionkit.models.backbones.weights import read
from visionkit.models.build import load_model_weights
from visionkit.runs import checkpoint

SOURCES = sorted(p for folder in ("visionkit", "scripts") for p in (ROOT / folder).rglob("*.py"))

BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code"}
NETWORK = {"urllib.request", "requests", "http", "ftplib", "smtplib", "asyncio", "socketserver"}
CALLS = {
    *("os.system", "os.popen", "os.execv", "tempfile.mktemp", "yaml.load", "yaml.full_load"),
    *("yaml.unsafe_load", "yaml.load_all", "torch.jit.load", "torch.hub.load", "np.fromregex"),
    *("torch.hub.load_state_dict_from_url", "torch.package.PackageImporter", "socket.socket"),
}
METHODS = {"extractall", "load_state_dict_from_url", "get_state_dict", "unpack_archive"}
ALLOWED = {  # and why
    ("components.py", "importlib.import_module"),  # the `type:` of a config
    ("__init__.py", "import_module"),  # visionkit's own modules, when they are asked for
    # the one place that downloads, weights that are named
    ("download.py", "import urllib.request"),
    ("download.py", "import http.client"),
    ("download.py", "import http.client.HTTPException"),
}


def faults(source, name="x.py"):
    """Calls and imports in a source text that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{m}" for m in modules] + [str(node.module)]
            for module in modules:
                imported = f"import {module}"
                known = module.split(".")[0] in MODULES | NETWORK or module in NETWORK
                found += [imported] * (known and (name, imported) not in ALLOWED)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        bad = called in BUILTINS or called in CALLS or last in METHODS
        named = bool(node.args) and isinstance(node.args[0], ast.Constant)  # in the source itself
        bad |= last == "import_module" and not named and (name, called) not in ALLOWED
        bad |= called.startswith("torch.hub.download")
        bad |= called == "torch.load" and given.get("weights_only") != "True"
        bad |= given.get("allow_pickle", "False") != "False" or "shell" in given
        found += [called] * bad
    return found


def test_the_source_has_no_call_that_runs_what_a_file_says():
    found = {str(path): faults(path.read_text(), path.name) for path in SOURCES}
    assert len(found) > 100 and not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "compile(text, '', 'exec')", "__import__(name)",
        "import pickle", "from marshal import loads", "import dill as d", "import shelve",
        "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text)",
        "torch.load(path, weights_only=trusted)", "np.load(path, allow_pickle=True)",
        "yaml.unsafe_load(text)", "subprocess.run(words, shell=True)", "os.system(words)",
        "archive.extractall(folder)", "tempfile.mktemp()", "importlib.import_module(name)",
        "torch.hub.load_state_dict_from_url(url)", "from urllib.request import urlopen",
        "weights.get_state_dict()", "import requests", "torch.jit.load(path)",
    ],
)  # fmt: skip
def test_such_a_call_would_be_found(line):
    assert faults(line)


class Payload:
    """Unpickling it calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(marker):
    touch = Payload(os.system, f"touch {marker}")
    inner = io.BytesIO()
    torch.save({"x": touch}, inner)
    objects = np.empty(1, object)
    objects[0] = touch
    return {
        "os.system": touch,
        "eval": Payload(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Payload(getattr, touch, "anything"),
        "storage in storage": Payload(torch.storage._load_from_bytes, inner.getvalue()),
        "object array": objects,
        "open": Payload(open, str(marker), "w"),
    }


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", payloads(""))
def test_payloads_are_refused_in_every_container(name, marker, tmp_path):
    content = {"format": 1, "w": torch.zeros(2), "x": payloads(marker)[name]}
    file = tmp_path / "x.pt"
    for write in (
        lambda: torch.save(content, file),
        lambda: torch.save(content, file, _use_new_zipfile_serialization=False),
        lambda: file.write_bytes(pickle.dumps({**content, "w": 0}, protocol=2)),
        lambda: file.write_bytes(pickle.dumps({**content, "w": 0})),
    ):
        write()
        with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read"):
            checkpoint.load(file)
        assert not marker.exists()


def test_the_payloads_would_run(tmp_path):
    """The control: a reader that trusts the file is had by each of them."""
    for number in range(len(payloads(""))):
        marker = tmp_path / str(number)
        payload = list(payloads(marker).values())[number]
        with suppress(TypeError, AttributeError):  # after it has run
            pickle.loads(pickle.dumps(payload))
        assert marker.exists()


def test_nothing_lets_a_payload_in(marker, tmp_path, capsys):
    """Weights of a backbone and of a model, a run to use, to resume, to grow from; the cache."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    bad = run / "checkpoints" / "last.pt"
    torch.save({"format": 1, "model": {}, "x": payloads(marker)["os.system"]}, bad)
    shapes = {"type": "Shapes", "num_images": 4, "size": 32}
    spec = {"backbone": {"type": "TinyCNN"}, "task": "autoencoder", "name": "a"}
    spec["data"] = {"train": shapes, "image_size": 32, "workers": 0}
    (run / "config.yaml").write_text(load_config(spec).to_yaml())

    for reader in (lambda: read(str(bad)), lambda: load_model_weights(TinyCNN(), str(bad), {})):
        with pytest.raises(CheckpointError, match="cannot be read"):
            reader()
    with pytest.raises(CheckpointError, match=r"(?s)init_from: .*cannot be read"):
        load_config({**spec, "init_from": str(run)})
    taken = {"init_from": {"run": str(run), "heads": []}}
    backbone = ["backbone.type=Torchvision", f"backbone.weights={bad}"]
    words = ["data.train.num_images=4", f"output={tmp_path / 'new'}"]
    (tmp_path / "grown.yaml").write_text(json.dumps({**load_config(spec).to_dict(), **taken}))
    for command in (
        ["eval", str(run)],
        ["predict", str(bad), str(tmp_path), "--out", str(tmp_path / "out")],
        ["train", "--resume", str(run)],
        ["train", str(run / "config.yaml"), f"weights={bad}", *words],
        ["train", str(run / "config.yaml"), *backbone, *words],
        ["train", str(tmp_path / "grown.yaml"), *words],
    ):
        assert main(command) == 4, command
        assert "Traceback" not in capsys.readouterr().err
    assert not marker.exists() and not (tmp_path / "new").exists()


def test_the_cache_holds_no_objects(marker, tmp_path):
    """Arrays and JSON: an array of pickled objects is refused."""
    cache.save(tmp_path, {"a": np.zeros(8, np.uint8)}, {})
    objects = np.empty(1, object)
    objects[0] = payloads(marker)["os.system"]
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError):
        cache.load(tmp_path)
    (tmp_path / "index.json").write_bytes(pickle.dumps(payloads(marker)["os.system"]))
    with pytest.raises(ValueError):
        cache.load(tmp_path)
    assert not marker.exists()


def test_exported_programs_are_not_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"script/{name}", b"3\n")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    for name in ("script.pt", "model.onnx"):
        with pytest.raises(CheckpointError, match=rf"{name}.*use a file with the state_dict"):
            read(str(tmp_path / name))


def test_an_old_torch_is_not_trusted_with_files(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pt")
    for version in ("2.9.1+cu126", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(CheckpointError, match=r"torch (2\.9\.1|1\.13).*install torch 2\.10"):
            checkpoint.load_tensors(tmp_path / "x.pt")
    for version in ("2.10.0", "2.14.1+cpu", "3.0.0a0+git"):
        monkeypatch.setattr(torch, "__version__", version)
        checkpoint.load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"),
        ("format", None),
        ("config", None),
        ("config", ["task"]),
        ("classes", []),
        ("classes", {"a": 3}),
        ("classes", {"a": {"names": ["x"], "ids": []}}),
        ("classes", {"a": {"names": [3], "ids": [1]}}),
        ("classes", {}),
        ("model", []),
        ("model", {"w": 3}),
        ("model", {}),
        ("config", {"backbone": {"type": "TinyCNN"}}),
        ("config", {"heads": 3, "data": [1], "backbone": None, "neck": {}}),
    ],
)
def test_a_checkpoint_of_another_shape_differs_from_one(key, value, tmp_path, capsys):
    shapes = {"type": "Shapes", "num_images": 4, "size": 32}
    spec = {"task": "autoencoder", "backbone": {"type": "TinyCNN"}}
    config = load_config({**spec, "data": {"train": shapes, "image_size": 32}}).to_dict()
    classes = {"autoencoder": {"names": [], "ids": []}}
    state = {"format": 1, "config": config, "classes": classes, "model": {}, key: value}
    torch.save(state, tmp_path / "x.pt")
    assert main(["eval", str(tmp_path / "x.pt")]) in (2, 4)
    shown = capsys.readouterr().err
    assert "x.pt" in shown and "Traceback" not in shown and "unexpected" not in shown
    with pytest.raises((ConfigError, CheckpointError), match=r"x\.pt|data"):
        load_config({**spec, "init_from": str(tmp_path / "x.pt")})
