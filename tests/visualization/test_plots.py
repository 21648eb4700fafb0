"""Curves of a run: which there are, and at their limits: no point and one, one class and 500."""

import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from visionkit.visualization.curves import Line, _loss_panels, read_records, series_of
from visionkit.visualization.plots import _draw_panels, smooth, write_plots

pytest.importorskip("matplotlib")


def record(kind, step, **values):
    return {"kind": kind, "step": step, "epoch": 0.1 * step, **values}


def classes(count):
    """A validation with so many classes, as detection and semantic segmentation have them."""
    ap = {f"objects/bbox/AP/class {i}": i / count for i in range(count)}
    iou = {f"map/IoU/$class_{i}^": 1 - i / count for i in range(count)}
    return {"objects/bbox/AP": 0.5, "map/mIoU": 0.5, **ap, **iou}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], set()),
        ([record("val", 3)], set()),
        ([record("val", 3, **{"objects/bbox/AP": None})], set()),
        ([record("val", 3, **{"objects/bbox/AP": 0.0})], {"metrics"}),
        ([record("train", 1, **{"train/total": 1.0}, lr=0.1)], {"losses", "progress"}),
        ([record("train", 1, **{"train/total": 1.0}), record("val", 1, **classes(1))], None),
        ([record("val", step, **classes(500)) for step in (1, 2)], {"metrics"}),
    ],
    ids=["nothing", "no metric", "null", "one point", "one step", "one class", "500 classes"],
)
def test_images_are_there_and_readable(records, expected, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    write_plots(file, tmp_path / "plots")
    found = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert found == ({"losses", "metrics"} if expected is None else expected)
    for path in (tmp_path / "plots").iterdir():
        with Image.open(path) as image:
            image.load()
            assert 300 < image.width < 3000 and 200 < image.height < 3000
            light, dark = image.convert("L").getextrema()[::-1]
            assert light == 255 and dark < 100  # something is drawn


def write_metrics(path):
    lines = []
    for step in range(1, 61):
        lines.append(
            {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.01, "images_per_second": 9}
            | {"train/detection/box_reg": 1 / step, "train/total": 2 / step}
        )
        if step % 20 == 0:
            lines.append(
                {"kind": "val", "step": step, "epoch": step / 10, "detection/bbox/AP": step / 100}
                | {"detection/bbox/APs": None, "detection/bbox/AP/$5 $ bill": 0.5}
                | {"detection/loss/box_reg": math.nan}
            )
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(text + '\nnonsense\n[1]\n{"kind": "tra')
    return path


def test_curves_are_written(tmp_path):
    write_plots(write_metrics(tmp_path / "metrics.jsonl"), tmp_path / "plots")
    names = ["losses.png", "metrics.png", "progress.png"]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == names
    for name in names:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.width > 400 and len(np.unique(np.asarray(image.convert("L")))) > 20


def test_a_loss_is_drawn_with_its_validation_whatever_the_source():
    points = [(1, 1.0)]
    train = {"train/total": points, "train/a/box": points, "train/b/box": points}
    val = {"a/loss/box": points, "street/b/loss/box": points, "places/b/loss/box": points}
    panels = {title: [line[0] for line in lines] for title, lines in _loss_panels(train, val)}
    assert panels == {
        "total": ["training"],
        "a/box": ["training", "validation"],
        "b/box": ["training", "street/b/loss/box", "places/b/loss/box"],
    }


def test_series_hold_the_finite_values_over_the_steps(tmp_path):
    records = read_records(write_metrics(tmp_path / "metrics.jsonl"))
    assert len(records) == 63
    val = series_of(r for r in records if r["kind"] == "val")
    assert val["detection/bbox/AP"] == [(20, 0.2), (40, 0.4), (60, 0.6)]
    assert set(val) == {"detection/bbox/AP", "detection/bbox/AP/$5 $ bill"}


def test_a_run_without_records_has_no_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_plots(tmp_path / "metrics.jsonl", tmp_path / "plots")
    write_plots(tmp_path / "missing.jsonl", tmp_path / "plots")
    assert list((tmp_path / "plots").iterdir()) == []


def test_without_matplotlib_a_message_says_what_to_install(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_plots(write_metrics(tmp_path / "metrics.jsonl"), tmp_path / "plots")
    assert "visionkit-torch[plots]" in caplog.text and len(caplog.records) == 1
    assert not (tmp_path / "plots").exists()


def test_smoothing_keeps_a_constant_and_calms_noise():
    assert smooth([2.0] * 50, 3) == pytest.approx(2.0)
    noise = np.random.default_rng(0).normal(size=200)
    assert smooth(noise, 5).std() < 0.5 * noise.std()
    # It does not lag: a symmetric bump keeps its place.
    bump = np.exp(-0.5 * (np.arange(101) - 50.0) ** 2 / 100)
    assert smooth(bump, 4).argmax() == 50


def test_legends_do_not_cover_the_curves():
    from matplotlib.figure import Figure

    points = [(step, 1.0) for step in range(5)]
    lines = [Line(f"class {i}", points) for i in range(12)]
    figure = _draw_panels(Figure, [("AP", lines), ("IoU", lines)])
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 >= axes.get_window_extent().x1
        assert legend.y0 >= 0 and legend.x1 <= figure.bbox.x1


def test_few_points_have_markers():
    from matplotlib.figure import Figure

    few, many = ([(step, 1.0) for step in range(count)] for count in (3, 100))
    panels = [("", [Line("", points, smoothed=True)]) for points in (few, many)]
    lines = [axes.get_lines() for axes in _draw_panels(Figure, panels).axes]
    assert [len(drawn) for drawn in lines] == [1, 2]  # the values, and the smoothed curve
    assert lines[0][0].get_marker() == "o" and lines[1][1].get_marker() == "None"
