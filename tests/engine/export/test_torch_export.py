"""Files of `torch.export`: read by a process that has torch, torchvision and one operator."""

import json
import subprocess
import sys

import pytest
import torch

import visionkit
from support.paths import ROOT
from support.small_runs import SMALL_RUNS
from visionkit.engine.export.graph import ExportModel, exported_program

READS = """
import json, sys, torch
if len(sys.argv) > 2: __import__(sys.argv[2])
found = {"visionkit": ""}
program = torch.export.load(sys.argv[1], extra_files=found)
images = torch.arange(3 * 3 * 64 * 96).reshape(3, 3, 64, 96).mul(7).remainder(256).byte()
outputs = program.module()(images, torch.tensor([[64, 96], [32, 32], [50, 70]]))
print(json.dumps([found["visionkit"], {k: v.tolist() for k, v in outputs.items()}]))
assert len(sys.argv) > 2 or "visionkit" not in sys.modules
"""


@pytest.mark.parametrize(
    ("name", "needed"), [("classification", []), ("fcos", ["visionkit.ops.nms"])]
)
@pytest.mark.slow
def test_another_process_reads_it(tmp_path, name, needed):
    """Slow: torch is imported and the graph is traced again; alone, 15 s for both."""
    run = visionkit.train({**SMALL_RUNS[name], "output": str(tmp_path / "run")}).directory
    predictor = visionkit.load(run, {"train.device": "cpu"}, fold=False)
    path = tmp_path / "model.pt2"
    program = exported_program(predictor.model, predictor.heads)
    torch.export.save(program, path, extra_files={"visionkit": '{"format": 1}'})
    done = subprocess.run(
        [sys.executable, "-c", READS, str(path), *needed],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    metadata, found = json.loads(done.stdout)
    assert metadata == '{"format": 1}'
    images = torch.arange(3 * 3 * 64 * 96).reshape(3, 3, 64, 96).mul(7).remainder(256).byte()
    sizes = torch.tensor([[64, 96], [32, 32], [50, 70]])
    with torch.inference_mode():
        graph = ExportModel(predictor.model.float(), predictor.heads, "full").eval()
        expected = graph(images, sizes)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[key], dtype=value.dtype), value, rtol=1e-4, atol=1e-4
        )
