"""What `predict` writes for each kind of head, and the overlay that shows them together."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.data.image_io import SUFFIXES, read_image
from visionkit.engine.inputs import find_images
from visionkit.engine.prediction import Prediction, to_records
from visionkit.engine.results import (
    EMBEDDINGS,
    Counts,
    EmbeddingWriter,
    _write_maps,
    predict_files,
)
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ConfigError, DataError
from visionkit.types import Classes
from visionkit.visualization.draw import draw, draw_all

IMAGE = torch.full((3, 40, 60), 128, dtype=torch.uint8)
THINGS = Classes(("cat", "dog"), (3, 7))
STUFF = Classes(("background", "road"), (0, 1))
LOOKS = Classes(("color=red", "color=blue", "open"), (0, 1, 2))


@pytest.fixture
def prediction():
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 8, 50, 35]])
    scores = torch.tensor([0.9, 0.6])
    semantic = torch.zeros(40, 60, dtype=torch.uint8)
    semantic[:, 30:] = 1
    heads = {
        "words": {"probs": torch.tensor([0.2, 0.8]), "label": torch.tensor(1)},
        "objects": {"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 1])},
        "map": {"semantic": semantic},
        "looks": {
            "boxes": boxes,
            "scores": scores,
            "attributes": torch.tensor([[0.9, 0.1, 0.7], [0.2, 0.8, 0.1]]),
        },
        "vector": {"embedding": torch.tensor([0.6, 0.8])},
        "again": {"reconstruction": IMAGE[:, :20, :30] // 2},
    }
    none = Classes((), ())
    classes = {"words": THINGS, "objects": THINGS, "map": STUFF, "looks": LOOKS}
    return Prediction(heads, {**classes, "vector": none, "again": none}, IMAGE)


def test_records_of_all_heads(prediction):
    records = to_records(prediction, 5)
    by_head = {record["head"]: record for record in records}
    assert [r["category_name"] for r in records if r["head"] == "objects"] == ["cat", "dog"]
    assert by_head["map"]["pixels"] == {"background": 1200, "road": 1200}
    looks = [record for record in records if record["head"] == "looks"]
    assert looks[0]["bbox"] == [5, 5, 20, 25]
    assert looks[1]["attributes"] == pytest.approx(
        {"color=red": 0.2, "color=blue": 0.8, "open": 0.1}
    )
    assert set(by_head["vector"]) == {"head", "image_id"}
    assert set(by_head["again"]) == {"head", "image_id"}
    json.dumps(records)


def test_objects_are_drawn_from_the_score_of_their_head_on_unless_one_is_given():
    found = {"boxes": torch.tensor([[5.0, 5, 25, 30]]), "scores": torch.tensor([0.45])}
    heads = {"objects": {**found, "labels": torch.tensor([0])}}
    low = Prediction(heads, {"objects": THINGS}, IMAGE, {"objects": 0.4})
    usual = Prediction(heads, {"objects": THINGS}, IMAGE)
    drawn = low.draw().tobytes()
    assert drawn == usual.draw(threshold=0.4).tobytes()
    assert usual.draw().tobytes() == low.draw(threshold=0.5).tobytes() != drawn


def test_shortcuts_name_the_one_head(prediction):
    assert torch.equal(prediction.boxes, prediction.heads["objects"]["boxes"])
    assert prediction.semantic.shape == (40, 60)
    assert prediction.embedding.tolist() == pytest.approx([0.6, 0.8])


def test_class_maps_are_index_images(prediction, tmp_path):
    assert _write_maps(prediction, tmp_path / "a.jpg", tmp_path) == {"map": {"map": "a_map.png"}}
    stored = Image.open(tmp_path / "a_map.png")
    assert stored.mode == "P"
    assert np.array_equal(np.asarray(stored), prediction.heads["map"]["semantic"].numpy())


def test_vectors_come_with_names(prediction, tmp_path):
    vectors = EmbeddingWriter()
    assert vectors.add("a.jpg", prediction)["vector"]["row"] == 0
    assert vectors.add("b/c.jpg", prediction) == {"vector": {"embeddings": EMBEDDINGS, "row": 1}}
    vectors.save(tmp_path)
    stored = np.load(tmp_path / EMBEDDINGS)
    assert stored["vector"].shape == (2, 2)
    assert stored["vector_names"].tolist() == ["a.jpg", "b/c.jpg"]


def test_without_vectors_there_is_no_file(tmp_path):
    EmbeddingWriter().save(tmp_path)
    assert not (tmp_path / EMBEDDINGS).exists()


def test_one_overlay_shows_all_heads(prediction):
    names = {head: classes.names for head, classes in prediction.classes.items()}
    image = np.asarray(draw_all(IMAGE, prediction.heads, names))
    alone = np.asarray(draw(IMAGE, {}, ()))
    assert image.shape[1] == 2 * alone.shape[1]  # the reconstruction at the right
    left, right = np.split(image, 2, axis=1)
    assert abs(float(right.mean()) - 64) < 2
    for head in ("words", "objects", "map", "looks"):
        rest = {name: result for name, result in prediction.heads.items() if name != head}
        assert not np.array_equal(image, np.asarray(draw_all(IMAGE, rest, names))), head
    # The map lies below the boxes, in whatever order the heads come.
    turned = dict(reversed(prediction.heads.items()))
    assert np.array_equal(left, np.asarray(draw_all(IMAGE, turned, names))[:, : left.shape[1]])


class OfPrediction(Predictor):
    """Stands for a predictor that always gives the same."""

    draw_threshold = 0.5

    class Model:
        def __init__(self):
            self.heads = {}

    read = staticmethod(read_image)

    def __init__(self, prediction):
        self.prediction, self.model = prediction, self.Model()

    def predict_pixels(self, images):
        return [self.prediction for _ in images]


def test_files_of_a_joint_model(prediction, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (60, 40)).save(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    assert predict_files(OfPrediction(prediction), [tmp_path / "in"], out) == 0
    found = {path.name for path in out.iterdir()}
    assert found == {"a.jpg", "b.jpg", "a_map.png", "b_map.png", EMBEDDINGS, "predictions.json"}
    records = json.loads((out / "predictions.json").read_text())
    maps = [record for record in records if record["head"] == "map"]
    assert [record["map"] for record in maps] == ["a_map.png", "b_map.png"]
    rows = [record["row"] for record in records if record["head"] == "vector"]
    assert rows == [0, 1]
    predict_files(OfPrediction(prediction), [tmp_path / "in"], out)  # again, over its own results


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([0.9, 0.6, 0.2], "2 images, 4 objects"),
        ([0.04, 0.3], "2 images, 0 objects; the highest score is 0.3"),
        ([], "2 images, 0 objects"),
        (None, "2 images"),
    ],
)
def test_what_was_found_is_counted(scores, text, tmp_path):
    """Of two images with the same objects, those drawn from 0.5 on; without any, the best score."""
    boxes = torch.tensor([[1.0, 2, 9, 8]]).repeat(len(scores or ()), 1)
    found = {"boxes": boxes, "scores": torch.tensor(scores or [])}
    found["labels"] = torch.zeros(len(boxes), dtype=torch.long)
    heads = {"det": {"embedding": torch.ones(3)} if scores is None else found}
    one = Prediction(heads, {"det": THINGS}, IMAGE)
    counts = Counts()
    for _ in range(2):
        counts.add(one)
    assert str(counts) == text


class Interrupted(OfPrediction):
    """Until it is at the last image."""

    def predict_pixels(self, images):
        raise KeyboardInterrupt


def test_an_interrupted_command_can_be_repeated(prediction, tmp_path):
    """Also after a kill, which leaves temporary files; only in a folder that it made."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(prediction), [tmp_path / "in"], out)
    (out / "sub").mkdir()
    for name in ("b.jpg", "predictions.json.tmp.123", "sub/c.jpg.tmp.7"):
        (out / name).touch()
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(prediction), [tmp_path / "in"], out)
    predict_files(OfPrediction(prediction), [tmp_path / "in"], out)
    found = {path.name for path in out.rglob("*") if path.is_file()}
    assert found == {"a.jpg", "b.jpg", "a_map.png", EMBEDDINGS, "predictions.json"}
    (out / "predictions.json").unlink()  # it is not unfinished any more
    with pytest.raises(ConfigError, match="contains other files"):
        predict_files(OfPrediction(prediction), [tmp_path / "in"], out)


def test_overlays_keep_the_subfolders_and_records_name_them(prediction, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["one/a.png", "one/a.jpg", "one/s/t/a.png", "two/s/t/a.png", "two/b.jpg/c.png"]
    for name in [*names, "two/b.png"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(name)
    for out, inputs in (
        ("o", ["one", "two"]),
        ("p", [tmp_path / "one", Path("../", tmp_path.name, "two")]),
    ):
        predict_files(OfPrediction(prediction), inputs, out)
        records = json.loads((Path(out) / "predictions.json").read_text())
        overlays = {record["file_name"]: record["overlay"] for record in records}
        assert len(overlays) == len(set(overlays.values())) == 6
        assert all((Path(out) / overlay).is_file() for overlay in overlays.values())
        assert {"a.jpg", "a_2.jpg", "b.jpg/c.jpg", "b_2.jpg"} <= set(overlays.values())
        assert {"one/s/t/a.jpg", "two/s/t/a.jpg"} <= set(overlays.values())
        maps = {record["map"] for record in records if record["head"] == "map"}
        assert "one/s/t/a_map.png" in maps and all((Path(out) / name).is_file() for name in maps)
    names = find_images(["one"])
    predict_files(OfPrediction(prediction), ["one"], "q")
    assert (tmp_path / "q/s/t/a.jpg").is_file() and len(names) == 3


def test_images_of_one_name_have_their_paths(tmp_path):
    for name in ("one/a.png", "one/b.png", "two/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = [tmp_path / "one", tmp_path / "two", tmp_path / "one/b.png"]
    names = [name for _, name in find_images(inputs)]
    assert names == [f"{tmp_path}/one/a.png", "b.png", f"{tmp_path}/two/a.png", "b.png"]


def test_files_of_a_folder_that_are_passed_over_are_named(tmp_path, caplog):
    seen = ("a.png", "deep/b.jpg", "notes.txt", "deep/c.xyz", ".hidden", "d.PNG")
    for name in (*seen, "@eaDir/a.png/b.jpg", "deep/__MACOSX/b.jpg", ".thumbs/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "deep" / "link.png").symlink_to("nothing.png")
    assert len(find_images([tmp_path])) == 3
    (told,) = caplog.messages
    first, special, hidden = told.split("; ")
    assert first == "2 files without the suffix of an image skipped: c.xyz, notes.txt"
    assert special == "2 pipes, devices or links to nothing skipped: link.png, pipe.png"
    assert hidden.startswith("4 hidden files or folders skipped: ") and "@eaDir" in hidden
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "e.jxl").touch()
    if ".jxl" not in SUFFIXES:
        with pytest.raises(
            DataError, match=r"1 image of a format that is not read here .*e\.jxl; .* pillow-j"
        ):
            find_images([tmp_path / "none"])
    with pytest.raises(ConfigError, match="got an empty file name"):
        find_images([""])
