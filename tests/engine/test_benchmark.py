"""`visionkit bench`: figures of every config, that add up; nothing is written or left changed."""

import json
import math
import os

import pytest
import torch

from support.paths import ROOT
from visionkit.cli.main import main
from visionkit.cli.reports import bench_text
from visionkit.config import load_config
from visionkit.engine.benchmark import advice, benchmark

CONFIGS = ROOT / "configs"


def small(name):
    """A shipped config made to take a second."""
    spec = load_config(CONFIGS / name).to_dict()
    spec["backbone"].pop("weights", None)  # which may need a package
    for source in (s for s in spec["data"].values() if isinstance(s, dict)):
        source["train"] |= {"num_images": 16, "size": 64}
        source["val"] |= {"num_images": 5, "size": 64}
        source["batch_size"] = 2 * (source["images_per_identity"] or 2)
        source["image_size"] = min(source["image_size"], 64)
    spec["data"]["workers"] = 0
    return spec


@pytest.fixture(scope="module")
def two_sources():
    return benchmark(small("joint_two_sources.yaml"), {"data.workers": 1}, steps=3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] * (path.stem != "joint_shapes"))
        for path in sorted(CONFIGS.glob("*.yaml"))
    ],
)
def test_every_shipped_config_has_a_profile(name):
    spec = small(name)
    result = benchmark(spec, steps=1)
    assert {f"head/{head}" for head in spec["heads"]} <= set(result["seconds"])
    assert ("neck" in result["seconds"]) == (spec["neck"] is not None)
    assert result["evaluation"]["predict_seconds"] > 0


def test_the_parts_are_positive_and_add_up_to_the_step(two_sources):
    seconds = dict(two_sources["seconds"])
    step = seconds.pop("step")
    assert list(seconds) == [
        "data",
        "to_device",
        "backbone",
        "neck",
        "head/objects",
        "head/scene",
        "backward",
        "optimizer",
        "other",
    ]
    assert all(value > 0 for value in seconds.values())
    assert math.isclose(sum(seconds.values()), step)
    assert seconds["other"] < step / 2


def test_figures_of_two_sources_are_of_both(two_sources):
    assert two_sources["batch"] == 8 and two_sources["steps"] == 3 and two_sources["workers"] == 1
    step = two_sources["seconds"]["step"]
    assert math.isclose(two_sources["images_per_second"], 8 / step)
    assert two_sources["loader_images_per_second"] > 0
    assert two_sources["evaluation"]["images"] == 10
    assert two_sources["evaluation"]["scoring_seconds"] > 0
    assert two_sources["memory_mb"]["process"] > 50
    assert two_sources["device"] == "cpu" or "cuda" in two_sources["memory_mb"]


def test_the_command_prints_a_table_or_json_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text(load_config(small("mlp_mnist.yaml")).to_yaml())
    assert main(["bench", "c.yaml", "--json", "--steps", "2", "train.validate=false"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2 and result["evaluation"] is None
    assert main(["bench", "c.yaml", "train.precision=fp32", "--steps", "1"]) == 0
    table = capsys.readouterr().out
    assert "float32, 4 images per step" in table and "scoring of 4 images" in table
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_a_bad_config_is_an_error_of_the_users(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("task: detektion\n")
    assert main(["bench", str(config)]) == 2
    assert "detection" in capsys.readouterr().err
    assert main(["bench", str(config), "--steps", "0"]) == 2


def test_settings_of_the_process_are_left_alone():
    before = torch.get_rng_state()
    benchmark(small("mlp_mnist.yaml"), {"train.deterministic": True}, steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulated_batches_and_options_of_the_step_are_timed_too():
    changes = {"train.accumulate_grad_batches": 2, "train.ema": 0.9, "train.weighting": "pcgrad"}
    result = benchmark(small("joint_two_sources.yaml"), changes, steps=1)
    assert result["batch"] == 16


def invented(**changed):
    seconds = {"step": 1.0, "data": 0.1, "backbone": 0.4, "backward": 0.3, "optimizer": 0.2}
    seconds |= {key: value for key, value in changed.items() if key in seconds}
    return {
        "device": "cpu",
        "precision": changed.get("precision", "bfloat16"),
        "workers": 2,
        "batch": 8,
        "steps": 20,
        "images_per_second": 8.0,
        "loader_images_per_second": 100.0,
        "seconds": seconds,
        "evaluation": None,
        "memory_mb": {"process": 512.0},
    }


def test_advice_names_what_stands_out():
    assert advice(invented(), cores=4) == []
    (line,) = advice(invented(data=0.4), cores=4)
    assert line == "the loop waits for data 40 % of the time: raise data.workers, which is 2"
    assert "fewer transforms" in advice(invented(data=0.4), cores=2)[0]
    assert "optimizer takes 30 %" in advice(invented(optimizer=0.3), cores=4)[0]


def test_the_table_shows_each_part_with_its_share():
    text = bench_text({**invented(), "advice": ["look here"]})
    rows = [line.split() for line in text.splitlines()]
    assert ["backbone", "400.0", "ms", "40", "%"] in rows
    assert ["step", "1000.0", "ms", "100", "%"] in rows
    assert text.endswith("\nlook here")
