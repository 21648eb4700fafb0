"""Several heads on one backbone, fed by one source or by several with different labels."""

import json
import math

import pytest
import torch

import visionkit
from visionkit.engine.train import train
from visionkit.errors import CheckpointError, ConfigError
from visionkit.runs import checkpoint

SIZE = 64


def shapes(seed, count=12):
    return {"type": "Shapes", "num_images": count, "size": SIZE, "seed": seed}


def config(output, heads, data, **settings):
    small = {"steps": 3, "log_every": 1, "precision": "fp32", "plots": False}
    return {
        "backbone": {"type": "LightResNet"},
        "neck": {"type": "FPN", "channels": 32},
        "heads": heads,
        "data": {"workers": 0, **data},
        "train": {**small, **settings},
        "output": str(output),
    }


def source(*feeds, seed=0, **more):
    sizes = {"batch_size": 4, "image_size": SIZE}
    return {
        "feeds": [*feeds],
        **sizes,
        "train": shapes(seed),
        "val": shapes(100, 5),
        **more,
    }


OBJECTS = {"type": "FCOS"}
SCENE = {"type": "Classification", "weight": 0.5}
EVERY_HEAD = {
    "objects": {"type": "MaskRCNN"},
    "map": {"type": "SemanticFPN"},
    "scene": SCENE,
    "place": {"type": "Embedding"},
    "color": {"type": "Attributes", "boxes_from": "objects"},
}


def lines(run, kind):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def weights(run, name="last"):
    return checkpoint.load(run / "checkpoints" / f"{name}.pt")["model"]


def test_every_head_trains_evaluates_and_predicts_in_one_run(tmp_path):
    spec = config(tmp_path / "run", EVERY_HEAD, {"all": source(*EVERY_HEAD, images_per_identity=2)})
    run = train(spec).directory
    logged = lines(run, "train")[0]
    for head in EVERY_HEAD:
        assert any(key.startswith(f"train/{head}/") for key in logged), head
    assert logged["weight/scene"] == 0.5 and logged["weight/objects"] == 1.0

    metrics = visionkit.evaluate(run)
    main = ("objects/segm/AP", "map/mIoU", "scene/top1", "place/recall@1", "color/accuracy")
    assert set(main) <= metrics.keys()
    some = visionkit.evaluate(run, heads=["scene", "color"])
    assert {name.split("/")[0] for name in some} == {"scene", "color"}
    exact = {name: value for name, value in some.items() if "/loss/" not in name}
    assert exact == pytest.approx({name: metrics[name] for name in exact}, nan_ok=True)
    image = spec_image(run)
    prediction = visionkit.load(run).predict(image)
    assert prediction.heads.keys() == EVERY_HEAD.keys()
    assert prediction.draw().width >= SIZE
    only = visionkit.load(run, heads=["color"]).predict(image)
    assert only.heads.keys() == {"color"}
    assert torch.equal(only.heads["color"]["boxes"], prediction.heads["objects"]["boxes"])
    with pytest.raises(ConfigError, match="no head 'hue'; valid: color, map, objects"):
        visionkit.load(run, heads=["hue"])


def spec_image(run):
    config = visionkit.load_config(run / "config.yaml")
    return _dataset(next(iter(config.data.values())).val).image_path(0)


def _dataset(section):
    from visionkit.data.datasets.shapes import Shapes

    return Shapes(**{key: value for key, value in section.items() if key != "type"})


def test_the_loss_of_a_joint_step_is_the_weighted_sum(tmp_path):
    heads = {"objects": {**OBJECTS, "weight": 0.25}, "scene": SCENE}
    run = train(config(tmp_path / "run", heads, {"all": source(*heads)}, steps=1)).directory
    (logged,) = lines(run, "train")
    terms = {
        head: sum(v for k, v in logged.items() if k.startswith(f"train/{head}/")) for head in heads
    }
    expected = 0.25 * terms["objects"] + 0.5 * terms["scene"]
    assert logged["train/total"] == pytest.approx(expected, rel=1e-5)


def test_a_source_never_trains_a_head_that_it_does_not_feed(tmp_path, monkeypatch):
    """Each head's loss sees the images of its own source alone, told by their size; and the
    metrics of two sources carry their names."""
    from visionkit.models.heads.classification import Classification
    from visionkit.models.heads.fcos import FCOS

    seen = {Classification: set(), FCOS: set()}

    def spied(cls, loss):
        def watched(self, features, batch):
            seen[cls].add(batch.images.shape[-1])
            return loss(self, features, batch)

        return watched

    for cls in seen:
        monkeypatch.setattr(cls, "loss", spied(cls, cls.loss))
    heads = {"objects": OBJECTS, "scene": SCENE}
    data = {"boxes": source("objects"), "places": source("scene", seed=1, image_size=32)}
    run = train(config(tmp_path / "run", heads, data)).directory
    assert seen == {Classification: {32}, FCOS: {SIZE}}
    last = lines(run, "val")[-1]
    assert {"boxes/objects/bbox/AP", "places/scene/top1"} <= last.keys()


@pytest.mark.parametrize(
    "weighting", ["uncertainty", pytest.param("pcgrad", marks=pytest.mark.slow)]
)
def test_other_weightings_train_and_are_logged(weighting, tmp_path):
    heads = {"objects": OBJECTS, "scene": SCENE}
    data = {"boxes": source("objects"), "places": source("scene", "objects", seed=1)}
    run = train(config(tmp_path / "run", heads, data, weighting=weighting, steps=2)).directory
    logged = lines(run, "train")[-1]
    if weighting == "uncertainty":
        assert logged["weight/objects"] not in (1.0, 0.0) and logged["weight/scene"] != 0.5
    else:
        assert 0 <= logged["conflicts"] <= 1
    visionkit.load(run)


def test_the_best_checkpoint_by_several_metrics_and_guards():
    from visionkit.engine.progress import Best

    metrics = {"a/AP": 0.4, "b/top1": 0.8, "b/loss/total": 2.0, "c/mse": 0.1}
    assert Best("a/AP", {}).score(metrics) == 0.4
    assert Best({"a/AP": 2.0, "b/top1": 1.0}, {}).score(metrics) == pytest.approx(1.6)
    assert Best({"a/AP": 1.0, "b/loss/total": 0.1}, {}).score(metrics) == pytest.approx(0.2)
    guarded = Best("a/AP", {"b/top1": 0.9})
    assert math.isnan(guarded.score(metrics)) and guarded.violated(metrics) == ["b/top1"]
    assert Best("a/AP", {"b/top1": 0.8, "c/mse": 0.1}).score(metrics) == 0.4
    assert Best("a/AP", {"c/mse": 0.05}).violated(metrics) == ["c/mse"]
    assert math.isnan(Best("a/AP", {"b/top1": 0.5}).score({**metrics, "b/top1": math.nan}))


def test_unknown_metrics_are_found_before_training(tmp_path):
    heads = {"objects": OBJECTS, "scene": SCENE}
    spec = config(tmp_path / "run", heads, {"all": source(*heads)}, best_metric={"scene/top": 1.0})
    with pytest.raises(ConfigError, match="no validation has 'scene/top'; did you mean 'scene/top"):
        train(spec)
    spec["train"] |= {"best_metric": None, "best_constraints": {"scene/top": 0.5}}
    with pytest.raises(
        ConfigError, match=r"train\.best_constraints: no validation has 'scene/top'"
    ):
        train(spec)
    spec["train"] |= {"best_metric": None, "best_constraints": {"scenery/top1": 0.5}}
    with pytest.raises(ConfigError, match=r"train\.best_constraints: got 'scenery/top1'"):
        train(spec)


def test_a_head_that_describes_boxes_needs_one_that_finds_them(tmp_path):
    heads = {"color": {"type": "Attributes", "boxes_from": "objects"}}
    with pytest.raises(
        ConfigError, match=r"heads\.color\.boxes_from: got 'objects'; expected a head"
    ):
        train(config(tmp_path / "run", heads, {"all": source("color")}))
    heads = {"scene": SCENE, "color": {"type": "Attributes", "boxes_from": "scene"}}
    with pytest.raises(
        ConfigError, match=r"boxes_from: got 'scene'; expected a head with boxes; valid: none"
    ):
        train(config(tmp_path / "run", heads, {"all": source("scene", "color")}))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A trained run with two heads."""
    run = tmp_path_factory.mktemp("first") / "run"
    heads = {"objects": OBJECTS, "map": {"type": "SemanticFPN"}}
    return train(config(run, heads, {"main": source(*heads)})).directory


class TestGrowing:
    """`init_from`: a new head on a trained model."""

    def grown(self, first, output, **settings):
        frozen = {"freeze": ["backbone", "neck", "init_heads"], "steps": 3, "plots": False}
        return {
            "init_from": str(first),
            "task": "classification",
            "data": {
                "workers": 0,
                "train": shapes(7),
                "val": shapes(8, 5),
                "image_size": SIZE,
                "batch_size": 4,
            },
            "train": {"precision": "fp32", "log_every": 1, **frozen, **settings},
            "output": str(output),
        }

    def test_other_weights_to_start_from_are_refused(self, first, tmp_path):
        both = {**self.grown(first, tmp_path / "run"), "weights": "x.pt"}
        with pytest.raises(ConfigError, match="weights: would replace those of `init_from`"):
            visionkit.load_config(both)

    def test_old_heads_stay_bit_for_bit(self, first, tmp_path):
        run = train(self.grown(first, tmp_path / "run", ema=0.9)).directory
        before, after = weights(first, "best"), weights(run, "best")
        assert before.keys() < after.keys()
        for name, tensor in before.items():  # running statistics of the batch norms included
            assert torch.equal(tensor, after[name]), name
        image = spec_image(first)
        old, new = (visionkit.load(r).predict(image) for r in (first, run))
        assert new.heads.keys() == {"objects", "map", "classification"}
        for head, result in old.heads.items():
            for key, value in result.items():
                assert torch.equal(value, new.heads[head][key]), (head, key)

    @pytest.mark.slow
    def test_old_metrics_are_validated_along(self, first, tmp_path):
        run = train(self.grown(first, tmp_path / "run")).directory
        last = lines(run, "val")[-1]
        assert {"main/classification/top1", "main_before/map/mIoU"} <= last.keys()
        before = visionkit.evaluate(first)
        assert last["main_before/map/mIoU"] == pytest.approx(before["map/mIoU"], abs=1e-6)
        only = visionkit.evaluate(run, heads=["map"])  # by the same names
        assert only["main_before/map/mIoU"] == pytest.approx(last["main_before/map/mIoU"])

    @pytest.mark.slow
    def test_without_freezing_the_statistics_move(self, first, tmp_path):
        """A negative control of the first test."""
        run = train(self.grown(first, tmp_path / "run", freeze=["init_heads"])).directory
        before, after = weights(first, "best"), weights(run)
        assert any(not torch.equal(t, after[n]) for n, t in before.items() if "running" in n)
        assert all(torch.equal(t, after[n]) for n, t in before.items() if "heads." in n)

    @pytest.mark.slow
    def test_it_resumes_without_the_first_run(self, first, tmp_path):
        import shutil

        copy = tmp_path / "first"
        shutil.copytree(first, copy)
        run = train(self.grown(copy, tmp_path / "run")).directory
        shutil.rmtree(copy)
        again = train(visionkit.load_config(run / "config.yaml", {"train.steps": 5}), resume=True)
        assert checkpoint.load(again.directory / "checkpoints/last.pt")["step"] == 5
        visionkit.evaluate(run)

    def test_faults_are_told(self, first, tmp_path):
        spec = self.grown(tmp_path / "nowhere", tmp_path / "run")
        with pytest.raises(
            CheckpointError, match=r"^config: init_from: .*not found; expected a run[^\n]*$"
        ):
            train(spec)
        with pytest.raises(ConfigError, match=r"no parameter matches \['init_heads'\]"):
            plain = config(tmp_path / "x", {"scene": SCENE}, {"all": source("scene")})
            train({**plain, "train": {**plain["train"], "freeze": ["init_heads"]}})
        spec = self.grown(first, tmp_path / "run")
        spec["backbone"] = {"type": "Torchvision", "name": "resnet34"}
        with pytest.raises(ConfigError, match="backbone: differs from that of"):
            train(spec)
        resolved = visionkit.load_config(self.grown(first, tmp_path / "run")).to_dict()
        resolved["neck"]["channels"] = 16
        with pytest.raises(CheckpointError, match="tensors fit the model"):
            train(resolved)
