"""Optional packages: if one is missing or fails to import, one line says so and the rest works."""

import builtins
import logging
import sys

import pytest

from visionkit.errors import ConfigError
from visionkit.metrics.coco import engines
from visionkit.models.backbones.timm import Timm
from visionkit.visualization.plots import write_plots

FAULTS = [
    ModuleNotFoundError("no such module"),
    ImportError("undefined symbol"),
    OSError("libX.so"),
]


@pytest.fixture(params=FAULTS, ids=lambda error: type(error).__name__)
def fault(request, monkeypatch):
    """Importing any of them raises this."""
    original = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.split(".")[0] in ("matplotlib", "timm", "hotcoco"):
            raise request.param
        return original(name, *args, **kwargs)

    def found(name):
        return importing(name)

    for name in [n for n in sys.modules if n.split(".")[0] in ("matplotlib", "timm", "hotcoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.setattr(engines, "import_module", found)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    monkeypatch.delenv(engines.SETTING, raising=False)
    engines.log_once.cache_clear()
    return request.param


def test_no_curves_without_matplotlib(fault, tmp_path, caplog):
    caplog.set_level(logging.INFO, "visionkit")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "train/total": 1.0}\n')
    write_plots(tmp_path / "metrics.jsonl", tmp_path / "plots")
    assert len(caplog.records) == 1 and "visionkit-torch[plots]" in caplog.text
    assert not (tmp_path / "plots").exists()


def test_a_corrupt_hotcoco_leaves_the_metrics_to_pycocotools(fault, caplog):
    for _ in range(3):
        assert engines.pick_engine() == "pycocotools"
    assert len(caplog.records) == 1 and str(fault) in caplog.text
    with pytest.raises(ConfigError, match=rf"engine: hotcoco cannot be imported .*{fault}"):
        engines.pick_engine("hotcoco")


def test_timm_says_what_is_wrong_with_it(fault):
    with pytest.raises(ConfigError, match=rf'{fault}; run: pip install "visionkit-torch\[timm\]"'):
        Timm(name="resnet18")
