"""`visionkit bench RUN|MODEL.onnx`: which models are measured, and what the figures mean."""

import json
import math
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import visionkit
from support.small_runs import SMALL_RUNS
from visionkit.cli.main import main
from visionkit.cli.reports import bench_text
from visionkit.engine import latency
from visionkit.engine.latency import PARTS, Stopwatch, is_model
from visionkit.ops.inference import pick_precision

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # after the skip

from support.onnx_files import head_info, model_info, write_onnx  # noqa: E402  # it needs onnx

EAGER = ["eager bfloat16"] * (pick_precision("auto", torch.device("cpu")) == torch.bfloat16)
EAGER = [*EAGER, "eager float32"]
CONFIG = visionkit.load_config(SMALL_RUNS["fcos"]).to_dict()
OUTPUTS = {
    "detection_boxes": np.zeros((2, 4), np.float32),
    "detection_scores": np.zeros(2, np.float32),
    "detection_labels": np.zeros(2, np.int64),
    "detection_count": np.array(2),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return visionkit.train({**SMALL_RUNS["fcos"], "output": str(folder / "run")}).directory


def exported(path, precision="fp32", **changed):
    """A file as `visionkit export` writes it, which finds the same in every image."""
    names = [name.removeprefix("detection_") for name in OUTPUTS]
    head = head_info("FCOS", names, classes=visionkit.Classes.numbered("abc"))
    info = model_info({"detection": head}, precision=precision)
    return write_onnx(path, replace(info, config=CONFIG, **changed), OUTPUTS)


def check(result, names, steps):
    assert [*result["variants"]] == names
    assert result["steps"] == steps and result["threads"] == torch.get_num_threads()
    assert len(result["images"]) == 8
    for variant in result["variants"].values():
        assert [*variant["batches"]] == ["1", "8"]
        for size, one in variant["batches"].items():
            ms = one["milliseconds"]
            assert 0 < ms["p50"] <= ms["p90"] <= ms["p99"]
            assert math.isclose(one["images_per_second"], 1000 * int(size) / ms["p50"])
            assert [*one["shares"]] == list(PARTS) and all(v >= 0 for v in one["shares"].values())
            assert math.isclose(sum(one["shares"].values()), 1)


def test_a_run_is_measured_in_its_precisions_with_the_files_next_to_it(run, tmp_path):
    before = torch.get_rng_state()
    for name in ("model.onnx", "model.int8.onnx"):
        exported(run / name, "int8" if "int8" in name else "fp32")
    try:
        result = visionkit.benchmark(run, steps=3)
    finally:
        for name in ("model.onnx", "model.int8.onnx"):
            (run / name).unlink()
    check(result, [*EAGER, "onnxruntime fp32", "onnxruntime int8"], 3)
    files = [variant["file"] for variant in result["variants"].values()]
    want = [str(run / "model.onnx"), str(run / "model.int8.onnx")]
    assert files == [None] * len(EAGER) + want and result["advice"] == []
    # Those of the validation data, which are 5, again and again.
    assert result["images"] == [[32, 32]] * 8
    shares = result["variants"]["eager float32"]["batches"]["8"]["shares"]
    assert shares["network"] > 0 and shares["nms"] > 0 and shares["decode"] > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_without_files_says_how_to_write_one(run):
    result = visionkit.benchmark(run, steps=1)
    check(result, EAGER, 1)
    assert result["advice"] == [
        f"no ONNX file: visionkit export {run} writes one, which is measured too"
    ]


def test_a_file_alone_and_its_neighbors(tmp_path):
    path = exported(tmp_path / "cats.onnx")
    exported(tmp_path / "cats.int8.onnx", "int8")
    exported(tmp_path / "dogs.int8.onnx", "int8")
    result = visionkit.benchmark(path, steps=1)
    check(result, ["onnxruntime fp32", "onnxruntime int8"], 1)
    assert result["variants"]["onnxruntime int8"]["file"] == str(tmp_path / "cats.int8.onnx")
    assert result["advice"] == [
        f"{path}: is in no folder of a run, so eager models were not measured"
    ]


def test_a_neighbor_that_cannot_be_used_is_named_and_the_file_itself_must_be_usable(tmp_path):
    path = exported(tmp_path / "cats.onnx")
    (tmp_path / "cats.fp16.onnx").write_text("damaged")
    exported(tmp_path / "cats.int8.onnx", decode="raw")
    result = visionkit.benchmark(str(path), steps=1)
    check(result, ["onnxruntime fp32"], 1)
    first, second, _ = result["advice"]
    assert first.startswith(f"not measured: {tmp_path}/cats.fp16.onnx: ")
    assert "decode raw" in second and second.startswith(f"not measured: {tmp_path}/cats.int8.onnx")
    for name, words in (("cats.fp16.onnx", "cats.fp16.onnx"), ("cats.int8.onnx", "raw")):
        with pytest.raises(visionkit.CheckpointError, match=words):
            visionkit.benchmark(tmp_path / name, steps=1)
    with pytest.raises(visionkit.VisionkitError, match=r"nowhere\.onnx"):
        visionkit.benchmark(tmp_path / "nowhere.onnx", steps=1)


def test_two_files_of_one_precision_keep_apart(tmp_path):
    path = exported(tmp_path / "cats.onnx")
    exported(tmp_path / "cats.int8.onnx", "fp32")
    result = visionkit.benchmark(path, steps=1)
    names = ["onnxruntime fp32", f"onnxruntime fp32 {tmp_path / 'cats.int8.onnx'}"]
    check(result, names, 1)


def test_images_are_generated_where_there_is_no_validation_data(run, tmp_path):
    spec = visionkit.load_config(SMALL_RUNS["fcos"]).to_dict()
    spec["data"]["main"]["val"] = {"type": "Coco", "images": "gone", "annotations": "gone.json"}
    config = visionkit.load_config(spec)
    images = latency._images(config, visionkit.load(run).classes, 3)
    assert [tuple(image.shape) for image in images] == [(3, 320, 320)] * 3


def test_overrides_reach_the_run_and_the_size_reaches_the_files(run):
    exported(run / "model.onnx")
    try:
        changes = {"data.image_size": 48, "train.device": "cpu"}
        check(visionkit.benchmark(run, changes, steps=1), [*EAGER, "onnxruntime fp32"], 1)
        words = ["data.image_size=48", "train.device=cpu"]
        check(visionkit.benchmark(run, words, steps=1), [*EAGER, "onnxruntime fp32"], 1)
    finally:
        (run / "model.onnx").unlink()


def test_the_command_prints_a_table_or_json_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "cats.onnx")
    assert main(["bench", "cats.onnx", "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(["bench", "cats.onnx", "--steps", "1"]) == 0
    table = capsys.readouterr().out
    assert "batch of 8" in table and "onnxruntime fp32" in table and "is in no folder" in table
    assert os.listdir(tmp_path) == ["cats.onnx"]
    assert main(["bench", "nowhere.onnx"]) == 4 and "nowhere.onnx" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_variant():
    one = {"images_per_second": 20.0, "milliseconds": {"p50": 50.0, "p90": 60.0, "p99": 75.0}}
    one["shares"] = {"resize": 0.1, "network": 0.8, "decode": 0.04, "nms": 0.06}
    result = {
        "threads": 2,
        "steps": 20,
        "images": [[480, 640], [480, 640], [32, 64]],
        "variants": {"eager float32": {"file": None, "batches": {"1": one, "8": one}}},
        "advice": ["look here"],
    }
    first, *lines = bench_text(result).splitlines()
    assert first == "2 threads, 20 rounds, images of 32x64, 480x640 pixels (h x w)"
    row = "eager float32 20.0 50.0 60.0 75.0 10 % 80 % 4 % 6 %"
    assert [" ".join(line.split()) for line in lines].count(row) == 2
    assert lines[-1] == "look here"


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("detection", False),
        ("c.yaml", False),
        ({"task": "detection"}, False),
        ("nowhere.onnx", True),
        ("nowhere.pt", True),
        ("hf://owner/name", True),
        ("folder", False),
        ("run", True),
        ("bundle", True),
    ],
)
def test_models_are_told_from_configs(run, tmp_path, monkeypatch, target, is_one):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/model.safetensors").touch()
    (tmp_path / "c.yaml").touch()
    shutil.copytree(run, tmp_path / "run")
    assert is_model(target) == is_one


def test_the_time_of_a_part_is_without_the_parts_within_it():
    watch = Stopwatch(torch.device("cpu"))
    with watch("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with watch("inner"):
                time.sleep(0.03)
    assert 0.02 <= watch.seconds["outer"] < 0.05 and watch.seconds["inner"] >= 0.06


def test_wrapped_methods_and_functions_are_put_back():
    class Thing:
        def work(self, n):
            return n + 1

    thing, own = Thing(), latency.nms.nms
    watch = Stopwatch(torch.device("cpu"))
    wrapping = watch.wrapping([(thing, "work", "a"), (latency.nms, "nms", "b")])
    with pytest.raises(ZeroDivisionError), wrapping:
        assert thing.work(1) == 2 and latency.nms.nms is not own
        raise ZeroDivisionError
    assert vars(thing) == {} and latency.nms.nms is own and watch.seconds["a"] > 0


def test_nodes_of_a_graph_are_shared_out_by_the_last_layer(tmp_path):
    """A large product of matrices, then NMS, then much to compute that is no layer."""
    side = 400
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["kept"]),
        *(helper.make_node("Erf", [f"e{i}" if i else "y"], [f"e{i + 1}"]) for i in range(3)),
    ]
    values = {
        "w": np.ones((side, side), np.float32),
        "boxes": np.random.default_rng(0).random((1, 200, 4), np.float32),
        "scores": np.random.default_rng(0).random((1, 1, 200), np.float32),
        "most": np.array([50]),
    }
    graph = helper.make_graph(
        nodes,
        "shares",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [side, side])],
        [
            helper.make_tensor_value_info("e3", TensorProto.FLOAT, [side, side]),
            helper.make_tensor_value_info("kept", TensorProto.INT64, None),
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = [{"x": np.ones((side, side), np.float32)}] * 2
    shares = latency._graph_shares(tmp_path / "m.onnx", feeds, 1)
    assert math.isclose(sum(shares.values()), 1) and all(share > 0 for share in shares.values())
    assert os.listdir(tmp_path) == ["m.onnx"]  # the profile is gone
