"""Training, evaluation and prediction connect to nothing, need no optional package, and write no
value of the environment."""

import os
import subprocess
import sys

import pytest

from support.paths import ROOT

SCRIPT = """
import importlib, pkgutil, socket, sys
from pathlib import Path

tried, connect = [], socket.socket.connect

def refuse(*address, **_):
    tried.append(address)
    raise OSError("no network")

def local(self, address):  # loader workers talk through sockets of the machine's own
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

socket.socket.connect = socket.socket.connect_ex = local
socket.getaddrinfo = socket.create_connection = refuse

for package in ("matplotlib", "hotcoco", "timm", "safetensors", "huggingface_hub"):
    sys.modules[package] = None  # importing it fails
sys.modules["pytest"] = sys.modules["hypothesis"] = None

import visionkit
for module in pkgutil.walk_packages(visionkit.__path__, "visionkit."):
    if module.name != "visionkit.__main__":
        importlib.import_module(module.name)

from visionkit.cli.main import main
words = ["data.workers=1", "data.batch_size=8", "train.epochs=1", "output=run"]
words += ["data.train.num_images=16", "data.val.num_images=8"]
assert main(["train", sys.argv[1], *words]) == 0
assert main(["eval", "run"]) == 0
images = next(Path("cache").glob("shapes-*-16x32-*/images"))
assert main(["predict", "run", str(images), "--out", "out"]) == 0
assert not tried
words += ["backbone={type: Torchvision, name: resnet18, weights: default}", "output=other"]
assert main(["train", sys.argv[1], *words]) == 4
assert tried  # the control
print("all done")
"""


@pytest.mark.slow
def test_nothing_reaches_the_network_and_no_secret_is_written(tmp_path):
    secret = "s3cr3t-0f-th3-3nv1r0nm3nt"
    home = {"HOME": str(tmp_path / "home"), "VISIONKIT_CACHE": str(tmp_path / "cache")}
    tokens = {"API_TOKEN": secret, "AWS_SECRET_ACCESS_KEY": secret, "HF_TOKEN": secret}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "configs/mlp_mnist.yaml")],
        env={**os.environ, **home, **tokens, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("all done\n"), done.stderr
    assert "could not be downloaded" in done.stderr and "Traceback" not in done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"last.pt", "status.json", "predictions.json"} <= {path.name for path in written}
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert secret not in done.stdout + done.stderr
    assert done.stderr.count("matplotlib is missing") == 1
