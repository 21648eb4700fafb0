"""Search by image: what is written, what counts as a match, and what is refused."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from visionkit.cli.main import main
from visionkit.engine.search import search_files
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ConfigError, DataError, DivergedError
from visionkit.models.backbones.torchvision import Torchvision
from visionkit.models.heads.embedding import Embedding
from visionkit.models.model import VisionModel
from visionkit.types import Level

LEVELS = {"c5": Level(8, 32)}


class Colors(nn.Module):
    """Replaces a model: the embedding of an image is its mean color."""

    def __init__(self, **heads):
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.draw_threshold = 0.5
        self.seen = []  # heads and sizes of each batch

    def head(self, name):
        return self.heads[name]

    def infer(self, batch, heads, dtype, views=False):
        self.seen.append((heads, batch.sizes))
        pairs = zip(batch.images, batch.sizes, strict=True)
        vectors = [image[:, :h, :w].float().mean((1, 2)) for image, (h, w) in pairs]
        return {head: [{"embedding": vector} for vector in vectors] for head in heads}, {}


def predictor_of(model):
    source = SimpleNamespace(image_size=32, value_range=None, feeds=list(model.heads))
    train = SimpleNamespace(device="cpu", precision="fp32", channels_last=False)
    config = SimpleNamespace(data={"main": source}, heads=dict.fromkeys(model.heads), train=train)
    return Predictor(model, config, {}, fold=False)


def by_color(*names):
    return predictor_of(Colors(**{name: Embedding(LEVELS, ()) for name in names or ("look",)}))


def paint(path, color, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    paint(tmp_path / "gallery/red/a.png", (200, 10, 0))
    paint(tmp_path / "gallery/red/b.png", (90, 0, 30))
    paint(tmp_path / "gallery/green.png", (0, 180, 0))
    paint(tmp_path / "gallery/blue.png", (0, 20, 250))
    paint(tmp_path / "asked/scarlet.png", (250, 0, 0), size=(16, 30))
    paint(tmp_path / "asked/lime.png", (30, 255, 0))
    return tmp_path


def search(folder, queries=("asked",), gallery=("gallery",), predictor=None, broken=0, **options):
    predictor = predictor or by_color()
    out = folder / "found"
    inputs = [[folder / name for name in names] for names in (queries, gallery)]
    assert search_files(predictor, *inputs, out, **options) == broken
    return json.loads((out / "matches.json").read_text())


def names(records):
    return {r["query"]: [match["file_name"] for match in r["nearest"]] for r in records}


def test_the_nearest_come_first(images):
    records = search(images, top=3)
    assert names(records) == {
        "lime.png": ["green.png", "red/a.png", "red/b.png"],
        "scarlet.png": ["red/a.png", "red/b.png", "blue.png"],
    }
    cosines = [match["similarity"] for match in records[1]["nearest"]]
    expected = [200 / (200**2 + 10**2) ** 0.5, 90 / (90**2 + 30**2) ** 0.5, 0.0]
    assert cosines == pytest.approx(expected, abs=1e-5)


def test_the_sheet_shows_queries_framed_and_matches_beside_them(images):
    search(images, top=3)
    with Image.open(images / "found" / "matches.jpg") as sheet:
        wide, high = sheet.size
        assert 4 * 144 < wide < 5 * 144 and 2 * 144 < high < 3 * 144
        frame, query, match = (sheet.getpixel((x, 8 + 72)) for x in (9, 8 + 72, 8 + 152 + 72))
    near = {"frame": (214, 39, 40), "query": (30, 255, 0), "match": (0, 180, 0)}
    for color, expected in zip((frame, query, match), near.values(), strict=True):
        assert max(abs(a - b) for a, b in zip(color, expected, strict=True)) < 12


def test_a_image_does_not_find_itself(images):
    records = search(images, queries=["gallery/red", "gallery/red/a.png"], top=9)
    assert [record["query"] for record in records] == ["a.png", "b.png"]
    assert names(records)["a.png"] == ["red/b.png", "green.png", "blue.png"]
    assert sorted(names(records)["b.png"]) == ["blue.png", "green.png", "red/a.png"]


def test_equal_images_come_in_the_order_they_were_named(tmp_path):
    for name in ("q/x.png", "g/3.png", "g/1.png", "g/2.png"):
        paint(tmp_path / name, (9, 9, 9))
    assert names(search(tmp_path, ["q"], ["g"], top=2)) == {"x.png": ["1.png", "2.png"]}


def test_only_images_of_one_size_share_a_batch(tmp_path):
    for i in range(19):
        paint(tmp_path / f"g/{i:02d}.png", (i, 1, 1), size=(8, 8) if i < 17 else (8, 9))
    paint(tmp_path / "q.png", (1, 1, 1), size=(8, 8))
    predictor = by_color()
    search(tmp_path, ["q.png"], ["g"], predictor)
    batches = [sizes for _, sizes in predictor.model.seen]
    assert sorted(len(sizes) for sizes in batches) == [2, 2, 4, 4, 4, 4]
    assert all(len(set(sizes)) == 1 for sizes in batches)


def test_broken_images_are_reported_and_left_out(images, caplog):
    (images / "gallery" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with caplog.at_level(logging.ERROR, "visionkit"):
        records = search(images, top=9, broken=1)
    assert all(len(r["nearest"]) == 4 for r in records)
    assert "skipped: image" in caplog.text and "broken.jpg" in caplog.text


@pytest.mark.parametrize("part", ["asked", "gallery"])
def test_nothing_that_can_be_read(images, part):
    (images / "bad").mkdir()
    (images / "bad" / "x.png").write_bytes(b"")
    parts = {"queries": ["asked"], "gallery": ["gallery"]}
    parts["queries" if part == "asked" else "gallery"] = ["bad"]
    message = "none of the queries" if part == "asked" else "none of the images of the gallery"
    with pytest.raises(DataError, match=message):
        search(images, **parts)


def test_a_second_search_replaces_the_first_and_does_not_find_its_sheet(images):
    everything = {"gallery": ["."], "top": 50}
    first = search(images, **everything)
    assert search(images, **everything) == first
    assert not any("found/" in name for found in names(first).values() for name in found)


def test_an_interrupted_search_can_be_repeated(images, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("visionkit.engine.search.save_image", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search(images)
    (images / "found/matches.json").unlink()
    search(images)
    assert {p.name for p in (images / "found").iterdir()} == {"matches.json", "matches.jpg"}


def test_a_folder_of_other_files_is_refused(images):
    paint(images / "found/holiday.png", (1, 2, 3))
    with pytest.raises(ConfigError, match="--out"):
        search(images)
    assert [path.name for path in (images / "found").iterdir()] == ["holiday.png"]


def test_the_head_is_the_only_one_or_named(images):
    two = by_color("look", "place")
    with pytest.raises(ConfigError, match="several embedding heads; choose one: look, place"):
        search(images, predictor=two)
    with pytest.raises(ConfigError, match="no embedding head 'loook'"):
        search(images, predictor=two, head="loook")
    assert search(images, predictor=two, head="place")
    assert all(heads == ["place"] for heads, _ in two.model.seen)
    mixed = Colors(boxes=nn.Linear(1, 1), look=Embedding(LEVELS, ()))
    assert search(images, predictor=predictor_of(mixed))
    assert all(heads == ["look"] for heads, _ in mixed.seen)
    with pytest.raises(ConfigError, match="no embedding head, only boxes"):
        search(images, predictor=predictor_of(Colors(boxes=nn.Linear(1, 1))))
    with pytest.raises(ConfigError, match="top: got 0"):
        search(images, top=0)


def test_a_vector_that_is_not_finite_names_the_image(images):
    predictor = by_color()
    unsound = [{"embedding": torch.tensor([1.0, float("nan")])}]
    predictor.model.infer = lambda batch, heads, dtype, views=False: (
        {"look": unsound * len(batch)},
        {},
    )
    with pytest.raises(DivergedError, match=r"lime\.png: the predicted 'embedding'"):
        search(images, predictor=predictor)


def test_a_real_model_finds_the_same_whatever_else_is_searched(images):
    torch.manual_seed(0)
    backbone = Torchvision(name="resnet18", norm="group")
    model = VisionModel(backbone, None, {"look": Embedding(backbone.levels, ())}, {"look": 1.0})
    predictor = predictor_of(model.eval())
    paint(images / "twin/x.png", (250, 0, 0), size=(16, 30))
    (best,) = search(images, ["asked/scarlet.png"], ["gallery", "twin"], predictor, top=1)
    assert names([best]) == {"scarlet.png": ["x.png"]}
    assert best["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    few = search(images, ["asked"], ["gallery/red/a.png"], predictor)
    all_ = search(images, ["asked"], ["gallery"], predictor, top=9)
    for one, many in zip(few, all_, strict=True):
        (match,) = one["nearest"]
        (same,) = [m for m in many["nearest"] if m["file_name"] == "red/a.png"]
        assert same["similarity"] == pytest.approx(match["similarity"], abs=1e-5)


def test_the_command_says_what_could_not_be_read(monkeypatch, capsys):
    monkeypatch.setattr("visionkit.engine.predict.load", lambda *_, **__: None)
    for broken, code in ((0, 0), (2, 3)):
        monkeypatch.setattr("visionkit.engine.search.search_files", lambda *_, n=broken, **__: n)
        assert main(["search", "RUN", "query.jpg", "gallery", "--out", "found"]) == code
        assert ("2 images could not be read" in capsys.readouterr().out) == bool(broken)
