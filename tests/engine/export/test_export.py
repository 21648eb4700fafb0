"""`visionkit.export`: what is written, what is checked, and what leaves no file."""

import copy
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

import visionkit
from support.small_runs import SMALL_RUNS, config
from visionkit.engine.export import export as module
from visionkit.engine.export import verify
from visionkit.engine.predict import load
from visionkit.errors import CheckpointError, ConfigError, VisionkitError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of five validation images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    visionkit.train({**SMALL_RUNS["classification"], "output": str(folder)})
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector that finds many objects, all wrong, in each of its five images."""
    spec = config("detection", "FCOS", pyramid=True, score_threshold=0.0, num_convs=1)
    folder = tmp_path_factory.mktemp("runs") / "detector"
    visionkit.train({**spec, "output": str(folder)})
    return folder


@pytest.fixture(scope="module")
def graphs():
    """Programs and ONNX models that were made before, by what is exported."""
    return {}


@pytest.fixture(autouse=True)
def _made_once(graphs, monkeypatch):
    """A graph takes seconds: those of the same model and options are made once."""
    made, converted = module.exported_program, module.to_onnx

    def program(model, heads, **options):
        scores = [m.score_threshold for m in model.modules() if hasattr(m, "score_threshold")]
        key = repr((model.kind, heads, options, scores))
        if key not in graphs:
            graphs[key] = made(model, heads, **options)
        return graphs[key]

    def proto(program):
        key = id(program)
        if key not in graphs:
            graphs[key] = converted(program)
        return copy.deepcopy(graphs[key])

    monkeypatch.setattr(module, "exported_program", program)
    monkeypatch.setattr(module, "to_onnx", proto)


def perturb(monkeypatch, name, by=1.05):
    """Change a weight of the file, as a wrong translation would."""
    convert = module.to_onnx

    def wrong(program):
        proto = convert(program)
        found = [t for t in proto.graph.initializer if name in t.name]
        assert found, [t.name for t in proto.graph.initializer]
        for tensor in found:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(by)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return proto

    monkeypatch.setattr(module, "to_onnx", wrong)


def test_a_classifier_is_written_checked_and_described(run, tmp_path):
    record = visionkit.export(run, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert record["file"] == str(tmp_path / "model.onnx")
    assert record["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert record["outputs"] == {"classification": ["probs"]}
    check = record["check"]
    assert check["images"] == {"data.val": 5} and check["generated"] is None
    (head,) = check["heads"].values()
    assert (head["unit"], head["matched"], head["total"]) == ("image", 5, 5)
    assert head["tensors"]["probs"] < 1e-6 and head["worst_image"] is None
    expected = visionkit.evaluate(run, {"train.precision": "fp32"})["classification/top1"]
    assert (head["metric"], head["model"], head["file"]) == ("top1", expected, expected)
    json.dumps(record)


def test_the_file_says_what_it_is(run, tmp_path):
    visionkit.export(run, tmp_path / "model.onnx", check=1)
    info = visionkit.load(tmp_path / "model.onnx").info
    best = run / "checkpoints/best.pt"
    assert info.checkpoint == module.download.sha256(best)
    assert (info.decode, info.precision, info.size, info.batch) == ("full", "fp32", None, None)
    (head,) = info.heads.values()
    assert head.classes == load(run).classes["classification"] and head.image_size == 32
    assert info.config["heads"]["classification"]["type"] == "Classification"
    assert info.torch == torch.__version__
    assert onnx.load(tmp_path / "model.onnx").metadata_props[-1].key == "visionkit_sha256"


@pytest.mark.slow
def test_a_detector_is_checked_by_its_objects(detector, tmp_path):
    record = visionkit.export(detector, tmp_path / "model.onnx")
    (head,) = record["check"]["heads"].values()
    assert head["unit"] == "object" and head["matched"] == head["total"] > 50
    assert {*head["tensors"]} == {"boxes", "scores"} and max(head["tensors"].values()) < 1e-5
    assert head["metric"] == "bbox/AP" and head["model"] == pytest.approx(head["file"], abs=1e-6)


def test_wrong_weights_in_the_file_leave_no_file_and_name_the_worst_image(
    detector, tmp_path, monkeypatch
):
    perturb(monkeypatch, "cls_logits.weight")
    with pytest.raises(VisionkitError, match="does not find what the model finds") as raised:
        visionkit.export(detector, tmp_path / "model.onnx")
    assert raised.value.exit_code == 1
    assert "objects are the same; expected at least 99.5%; worst image: image " in str(raised.value)
    assert not os.listdir(tmp_path)


def test_slightly_wrong_tensors_leave_no_file(run, tmp_path, monkeypatch):
    """Although every image gets its class."""
    perturb(monkeypatch, "weight", 1.002)
    with pytest.raises(VisionkitError, match=r"output 'probs' differs by \S+, relative"):
        visionkit.export(run, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_checked_all_the_same(detector, tmp_path, monkeypatch):
    """Its graph with every candidate as an object: nothing at all would match nothing at all."""
    settings = {"head.score_threshold": 0.99}
    record = visionkit.export(detector, tmp_path / "model.onnx", settings)
    (head,) = record["check"]["heads"].values()
    assert head["matched"] == head["total"] > 50
    assert os.listdir(tmp_path) == ["model.onnx"]
    model = visionkit.load(tmp_path / "model.onnx")
    assert len(model.predict(np.zeros((32, 32, 3), np.uint8))) == 0
    perturb(monkeypatch, "cls_logits.weight")
    with pytest.raises(VisionkitError, match="does not find what the model finds"):
        visionkit.export(detector, tmp_path / "other.onnx", settings)


def test_an_existing_file_is_replaced_only_with_overwrite(run, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"model\.onnx: exists; delete it, give --overwrite"):
        visionkit.export(run, path)
    with monkeypatch.context() as patch:
        perturb(patch, "weight")
        with pytest.raises(VisionkitError, match="is not written"):
            visionkit.export(run, path, overwrite=True)
    assert path.read_text() == "mine"
    visionkit.export(run, path, overwrite=True, check=1)
    assert path.stat().st_size > 1000 and os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("links", [True, False], ids=["", "no hard links"])
def test_a_file_that_appears_during_the_export_is_kept(run, tmp_path, monkeypatch, links):
    """Such as that of another export to the same name."""
    path, opened = tmp_path / "model.onnx", verify.opened

    def meanwhile(*arguments):
        path.write_text("theirs")
        return opened(*arguments)

    monkeypatch.setattr(verify, "opened", meanwhile)
    if not links:
        monkeypatch.setattr(os, "link", refused)
    with pytest.raises(ConfigError, match=r"model\.onnx: exists: something else wrote it"):
        visionkit.export(run, path, check=1)
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["model.onnx"]


def refused(*_):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("how", [KeyboardInterrupt(), OSError(28, "No space left"), MemoryError()])
def test_nothing_is_left_of_an_interrupted_export(run, tmp_path, monkeypatch, how):
    def interrupted(*_):
        assert len(os.listdir(tmp_path)) == 1
        raise how

    monkeypatch.setattr(verify, "compared", interrupted)
    kind = VisionkitError if isinstance(how, OSError) else type(how)
    with pytest.raises(kind, match="disk full" if kind is VisionkitError else None):
        visionkit.export(run, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_the_default_is_a_file_in_the_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    assert visionkit.export("copy", check=1)["file"] == "copy/model.onnx"
    shutil.copy(run / "checkpoints/best.pt", tmp_path / "cats.pt")
    assert visionkit.export("cats.pt", check=1)["file"] == "cats.onnx"
    assert (tmp_path / "copy/model.onnx").is_file() and (tmp_path / "cats.onnx").is_file()


def test_generated_images_replace_data_that_are_gone(detector, tmp_path):
    spec = load(detector).config.to_dict()
    spec["data"]["main"]["val"] = {"type": "Coco", "images": "gone", "annotations": "gone.json"}
    state = torch.load(detector / "checkpoints/best.pt", weights_only=True)
    torch.save({**state, "config": spec}, tmp_path / "moved.pt")
    record = visionkit.export(tmp_path / "moved.pt", tmp_path / "model.onnx")
    assert record["check"]["images"] == {"generated": 8}
    assert "data.val.images: got 'gone'; not found" in record["check"]["generated"]
    (head,) = record["check"]["heads"].values()
    assert head["total"] > 50 and head["metric"] is None


def test_data_that_an_override_names_are_not_replaced(run, tmp_path):
    given = {"data.val.root": "typo"}
    with pytest.raises(ConfigError, match=r"data\.val\.root: got 'typo'; not found"):
        visionkit.export(run, tmp_path / "model.onnx", given)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": ["clasification"]}, "did you mean 'classification'"),
        ({"size": (300, 320)}, "expected multiples of 32: the nearest are 288,320 and 320,320"),
        ({"size": (31, 5)}, "the nearest are 32,32 and 32,32"),
        ({"size": 320}, "size: got 320; expected two integers, height and width"),
        ({"size": (0, 320)}, "size: got 0; expected sides >= 1"),
        ({"batch": 0}, "batch: got 0; expected an integer >= 1"),
        ({"check": 0}, "check: got 0; expected an integer >= 1"),
        ({"max_drop": 2}, "max_drop: got 2; expected a number from 0 to 1"),
        ({"format": "onx"}, "did you mean 'onnx'"),
        ({"decode": "half"}, "decode: got 'half'"),
        ({"precision": "fp8"}, "precision: got 'fp8'"),
        ({"format": "torch-export"}, "expected a file name that ends in .pt2"),
        ({"overwrite": 1}, "overwrite: got 1; expected True or False"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(run, tmp_path, options, says):
    with pytest.raises(ConfigError) as raised:
        visionkit.export(run, tmp_path / "model.onnx", **options)
    assert says in str(raised.value) and not os.listdir(tmp_path)


def test_all_wrong_options_are_named_at_once(run):
    with pytest.raises(ConfigError) as raised:
        visionkit.export(run, format="tensorrt", batch=-1, size=(1,))
    assert len(str(raised.value).splitlines()) == 3


def test_a_place_that_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"gone/model\.onnx: the folder \S+gone does not exist"):
        visionkit.export(run, tmp_path / "gone/model.onnx")

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refused)
    with pytest.raises(ConfigError, match=r"cannot be written: Read-only file system \(errno 30\)"):
        visionkit.export(run, tmp_path / "model.onnx")


def test_a_missing_package_is_named_with_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"export: .*onnxscript.*visionkit-torch\[onnx\]"):
        visionkit.export(run, tmp_path / "model.onnx")


def test_what_is_no_run_is_said(tmp_path):
    (tmp_path / "a.pt").write_text("no weights")
    with pytest.raises(CheckpointError):
        visionkit.export(tmp_path / "a.pt", tmp_path / "model.onnx")


def test_a_torch_export_file_has_the_same_graph_and_is_checked(run, tmp_path):
    record = visionkit.export(run, tmp_path / "model.pt2", format="torch-export")
    (head,) = record["check"]["heads"].values()
    assert head["tensors"]["probs"] < 1e-6
    extra = {module.KEY: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[module.KEY])["heads"]["classification"]["outputs"] == ["probs"]
    images = torch.zeros(3, 3, 64, 32, dtype=torch.uint8)
    found = program.module()(images, torch.tensor([[64, 32]] * 3))
    assert found["classification_probs"].shape == (3, 6)


@pytest.mark.slow
def test_a_fixed_size_and_batch_are_those_of_the_file(detector, tmp_path):
    record = visionkit.export(detector, tmp_path / "model.onnx", size=(32, 64), batch=2)
    (head,) = record["check"]["heads"].values()
    assert head["matched"] == head["total"] > 50
    proto = onnx.load(tmp_path / "model.onnx")
    images = next(value for value in proto.graph.input if value.name == "images")
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [2, 3, 32, 64]


@pytest.mark.slow
def test_a_raw_file_has_what_the_layers_return(detector, tmp_path):
    record = visionkit.export(detector, tmp_path / "model.onnx", decode="raw")
    (outputs,) = record["outputs"].values()
    assert outputs == ["boxes", "scores", "labels"]
    (head,) = record["check"]["heads"].values()
    assert head["matched"] == head["total"] > 50 and head["metric"] is None


def test_lower_precision_is_measured_by_the_main_metric(run, tmp_path, monkeypatch):
    record = visionkit.export(run, tmp_path / "small.onnx", precision="int8", max_drop=1)
    assert visionkit.load(tmp_path / "small.onnx").info.precision == "int8"
    assert os.listdir(tmp_path) == ["small.onnx"]
    assert record["fp32"]["bytes"] > 0 and record["fp32"]["milliseconds"] > 0
    assert record["milliseconds"] > 0 and record["bytes"] == os.stat(record["file"]).st_size
    record = visionkit.export(run, tmp_path / "half.onnx", precision="fp16")
    (head,) = record["check"]["heads"].values()
    assert head["model"] == head["file"] and 0 < head["tensors"]["probs"] < 0.01

    perturb(monkeypatch, "weight", -1)  # the classes in reverse
    with pytest.raises(
        VisionkitError, match=r"top1 drops by [\d.]+, from 1\.0000 to 0\.\d+; at most"
    ):
        visionkit.export(run, tmp_path / "wrong.onnx", precision="fp16", max_drop=0.1)
    assert sorted(os.listdir(tmp_path)) == ["half.onnx", "small.onnx"]


def test_lower_precision_needs_labels_to_be_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "build_sources", lambda *_: [])
    options = {"precision": "fp16", "check": 2}
    with pytest.raises(
        VisionkitError, match=r"give labeled ones \(data\.val\.\.\.\).* --max-drop 1"
    ):
        visionkit.export(run, tmp_path / "half.onnx", **options)
    visionkit.export(run, tmp_path / "half.onnx", max_drop=1, **options)
    assert os.listdir(tmp_path) == ["half.onnx"]


CUSTOM = """

from visionkit.models.heads import Classification
class Other(Classification):
    def postprocess(self, outputs, size):
        raise NotImplementedError

"""


@pytest.mark.slow
def test_a_custom_head_needs_consent_and_a_postprocess(tmp_path, monkeypatch):
    (tmp_path / "own_heads.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    spec = SMALL_RUNS["classification"]
    spec = {**spec, "head": {"type": "own_heads.Other"}, "output": str(tmp_path / "run")}
    spec["train"] = {**spec["train"], "validate": False}
    visionkit.train(spec)
    path = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match=r"allow.plugins"):
        visionkit.export(tmp_path / "run", path)
    with pytest.raises(ConfigError, match=r"no `postprocess\(\)`; export it with --decode raw"):
        visionkit.export(tmp_path / "run", path, allow_plugins=True)
    record = visionkit.export(tmp_path / "run", path, allow_plugins=True, decode="raw")
    assert record["outputs"] == {"classification": ["logits"]}
    assert record["check"]["heads"]["classification"]["tensors"]["logits"] < 1e-5


@pytest.mark.slow
def test_heads_whose_names_begin_alike_keep_their_outputs(tmp_path):
    spec = SMALL_RUNS["classification"]
    head = {"type": "Classification"}
    spec = {key: value for key, value in spec.items() if key not in ("task", "head")}
    data = {key: value for key, value in spec["data"].items() if key != "workers"}
    spec |= {
        "heads": {"cars": head, "cars_big": head},
        "data": {"workers": 0, "main": {**data, "feeds": ["cars", "cars_big"]}},
        "output": str(tmp_path / "run"),
    }
    visionkit.train(spec)
    record = visionkit.export(tmp_path / "run", tmp_path / "model.onnx")
    assert record["outputs"] == {"cars": ["probs"], "cars_big": ["probs"]}
    record = visionkit.export(tmp_path / "run", tmp_path / "one.onnx", heads=["cars_big"])
    assert record["outputs"] == {"cars_big": ["probs"]}
    metrics = visionkit.evaluate(tmp_path / "one.onnx")
    assert {name.split("/")[0] for name in metrics} == {"cars_big"}


def test_a_subset_is_scored_against_its_own_labels():
    """Of ten images three, evenly spaced; the objects of the others are not missed."""
    from visionkit.data.datasets.shapes import Shapes

    dataset = Shapes(num_images=10, size=32, seed=3)
    subset = verify.Subset(dataset, 3)
    assert subset.indices == [0, 4, 9] and len(subset) == 3
    truth = subset.ground_truth()
    assert truth.image_ids.tolist() == [dataset.image_ids[i] for i in (0, 4, 9)]
    assert [subset[i].image_id for i in range(3)] == truth.image_ids.tolist()
    assert len(verify.Subset(dataset, 99)) == 10
