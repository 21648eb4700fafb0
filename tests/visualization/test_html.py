"""Pages: parsed as a browser would, with names that try to break out of the text."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from support.pages import EVIL, Parsed
from visionkit.metrics.parts import (
    Bars,
    Chart,
    Gallery,
    Mark,
    Matrix,
    Series,
    Shown,
    Table,
    Text,
)
from visionkit.visualization.html import (
    LISTED,
    MARKS,
    POINTS,
    Headline,
    Page,
    Section,
    draw_marks,
    free_place,
    is_page,
    plot,
    render,
)


def every_part(names):
    counts = np.arange(len(names) ** 2).reshape(len(names), -1)
    image = np.zeros((20, 30, 3), np.uint8)
    return [
        Text(names[0], names),
        Table(names[1], names, [names, [1.5, None, float("nan"), 3, 1e6, 2, 0.0, -1.0]]),
        Chart(names[2], names[3], names[4], [Series(n, [0, 1], [0.5, 1]) for n in names]),
        Bars(names[5], {name: 0.1 * i for i, name in enumerate(names)}, names[6]),
        Matrix(names[0], names, names, counts, {(0, 1): [1, 2], (1, 0): [5]}, names[2]),
        Gallery(names[3], [Shown(1, names[0], [Mark("wrong", [1, 1, 9, 9], names[1])])], names[4]),
        Gallery("own", [Shown(7, names[2], image=image)]),
    ]


def page_of(parts, **options):
    def open_image(id_):
        if id_ != 1:
            raise FileNotFoundError(f"{EVIL[0]} not found")
        return Image.new("RGB", (40, 30))

    section = Section("head", parts, "a note", open_image, lambda id_: f"{id_}.jpg")
    return Page("title", [section], **options)


def test_names_cannot_become_elements_or_scripts():
    page = page_of(every_part(EVIL), headline=[Headline(n, n, n) for n in EVIL], summary=EVIL)
    page.title, page.banners = EVIL[0], EVIL
    text = render(page, EVIL[0])
    parsed = Parsed(text)
    assert parsed.open == []
    assert len(parsed.all("script")) == 1  # our own
    assert all(source["src"].startswith("data:image/jpeg;base64,") for source in parsed.all("img"))
    assert not any(key.startswith("on") for _, attrs in parsed.elements for key in attrs)
    visible = "".join(parsed.text)
    assert all(name in visible for name in (EVIL[0], EVIL[6], EVIL[7]))
    assert "\x07" not in text and "\x00" not in text and "\u202e" not in text


def test_a_page_asks_nothing_of_the_network():
    text = render(page_of(every_part(EVIL)), "1")
    assert "default-src 'none'" in text
    addresses = [a.get("href", "") for a in Parsed(text).all("a")]
    assert addresses and all(address.startswith("#") for address in addresses)
    assert not re.search(r"(?i)(src|href|url\()\s*=?\s*[\"']?(https?:)?//", text)


def test_links_lead_to_something_on_the_page():
    parsed = Parsed(render(page_of(every_part(EVIL)), "1"))
    keys = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {a["href"][1:] for a in parsed.all("a")} <= keys


def test_an_image_that_is_gone_says_so_in_its_place():
    shown = [Shown(1, "there"), Shown(2, "gone")]
    text = "".join(Parsed(render(page_of([Gallery("worst", shown)]), "1")).text)
    assert "not shown: <script>alert(1)</script> not found" in text and "gone" in text


def test_a_cell_lists_its_images_and_how_many_more():
    ids = list(range(100, 100 + LISTED + 5))
    matrix = Matrix("m", ["a", "b"], ["a", "b"], np.array([[3, LISTED + 5], [0, 1]]), {(0, 1): ids})
    text = "".join(Parsed(render(page_of([matrix]), "1")).text)
    assert "a as b" in text and "100.jpg" in text and "and 5 more" in text
    assert f"{ids[-1]}.jpg" not in text


def test_a_chart_is_drawn_where_its_axes_say():
    chart = Chart("c", "x", "y", [Series("s", [1, 0, 0.5], [1, 0, np.nan], mark=0.5)], (0, 1))
    drawn = plot(chart)
    (line,) = drawn["lines"]
    left, right, top, bottom = (drawn[side] for side in ("left", "right", "top", "bottom"))
    assert line["points"] == [f"{left:g},{bottom:g} {right:g},{top:g}"]  # sorted, without the NaN
    assert line["mark"] == (left + right) / 2
    assert [tick["text"] for tick in drawn["x_ticks"]] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@pytest.mark.parametrize(
    "values", [[], [0.0], [5.0, 5.0], [-3.0, 1e9], [1e-12, 2e-12], [np.nan], [0.0] * 5000]
)
def test_any_values_have_axes(values):
    chart = Chart("c", "", "", [Series("s", range(len(values)), values)], y_range=None)
    drawn = plot(chart)
    places = [tick["at"] for tick in drawn["y_ticks"]]
    assert all(drawn["top"] - 1 <= place <= drawn["bottom"] + 1 for place in places)
    assert len(" ".join(drawn["lines"][0]["points"]).split()) <= POINTS


def test_marks_are_drawn_in_their_colors():
    image = Image.new("RGB", (480, 480))
    marks = [Mark("right", [100, 100, 200, 200]), Mark("missed", [300, 300, 400, 400])]
    drawn = draw_marks(image, Shown(1, "", marks))
    assert drawn.getpixel((100, 150)) == (26, 152, 80)
    assert drawn.getpixel((300, 350)) == (240, 140, 0)
    assert drawn.getpixel((250, 250)) == (0, 0, 0)


def test_extreme_images_and_boxes_are_drawn():
    for size in ((1, 1), (3, 4000), (4000, 3)):
        marks = [Mark("wrong", [-1e6, -5, 1e6, 1e-9], "x" * 1000)]
        assert max(draw_marks(Image.new("RGB", size), Shown(1, "", marks)).size) <= 480


def test_a_page_is_recognized_as_one(tmp_path):
    page, other = tmp_path / "a.html", tmp_path / "b.html"
    page.write_text(render(page_of([]), "1"))
    other.write_text("<html>mine</html>")
    assert is_page(page) and not is_page(other)


def test_no_text_of_a_mark_hides_another():
    """Fifteen boxes at almost the same place: the texts that fit, each where no other is."""
    taken = []
    for i in range(15):
        area = free_place((100 + i, 100, 300, 200), (80, 20), (480, 480), taken)
        taken += [area] if area else []
    assert 4 <= len(taken) < 15
    shown = np.zeros((480, 480), int)
    for left, top, right, bottom in taken:
        shown[top:bottom, left:right] += 1
    assert shown.max() == 1 and shown.sum() == len(taken) * 80 * 20
    assert free_place((470, -5, 500, 9), (80, 20), (480, 480), []) == (400, 0, 480, 20)


def test_texts_are_drawn_in_the_color_of_their_mark():
    marks = [
        Mark("wrong", [100, 100, 300, 300], "cat"),
        Mark("missed", [100, 100, 300, 300], "dog"),
    ]
    drawn = draw_marks(Image.new("RGB", (480, 480)), Shown(1, "", marks))
    assert drawn.getpixel((101, 97)) == MARKS["wrong"]  # above the box, then below it
    assert drawn.getpixel((101, 303)) == MARKS["missed"]


NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)


def opened(text, folder):
    """What Chromium makes of a page in a frame of 360 pixels with the network cut: its document,
    console messages, and the addresses that it asks for, without those of Chromium's own services.
    """
    frame = f'<iframe id="f" width="360" height="800" srcdoc="{html.escape(text)}"></iframe>'
    size = "found.outside = d.documentElement.scrollWidth - d.documentElement.clientWidth;"
    both = f"{size} found.buttons = d.querySelectorAll('button').length;"
    known = "const found = document.body.dataset, d = f.contentDocument;"
    script = f"<script>f.onload = () => {{ {known} {both} }}</script>"
    (folder / "page.html").write_text(f"<!doctype html><body>{frame}{script}</body>")
    switches = ["headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-extensions"]
    switches += ["disable-background-networking", "disable-component-update", "disable-sync"]
    switches += ["enable-logging=stderr", "v=0", "virtual-time-budget=2000", "dump-dom"]
    switches += ["proxy-server=127.0.0.1:9", f"user-data-dir={folder / 'user'}"]
    switches += [f"log-net-log={folder / 'net.json'}"]
    words = [CHROMIUM, *(f"--{one}" for one in switches), (folder / "page.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    log = json.loads((folder / "net.json").read_text())
    asked = {str(one.get("params", {}).get("url", "")) for one in log["events"]}
    own = re.compile(r"https?://[\w.]*\.(google|googleapis|gvt1)\.com/")
    return (
        done.stdout,
        messages,
        {url for url in asked if url.startswith("http")} - {url for url in asked if own.match(url)},
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_asks_for_nothing_and_reports_no_error(tmp_path):
    """And a telephone shows all of it: what is wider has a scroll bar of its own."""
    names = [*EVIL[:-1], "a" * 90]
    page = page_of(every_part(names), headline=[Headline(n, n, n) for n in names], summary=names)
    document, messages, asked = opened(render(page, "1"), tmp_path)
    assert asked == set() and messages == []
    assert 'data-outside="0"' in document and 'data-buttons="0"' not in document


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_would_report_them(tmp_path):
    """Without this the test above would also pass if it saw nothing."""
    text = '<p style="width: 700px">wide</p><script>absent()</script>'
    document, messages, asked = opened(text + '<img src="http://127.0.0.1:1/x.png">', tmp_path)
    assert asked == {"http://127.0.0.1:1/x.png"} and "absent is not defined" in messages[0]
    assert 'data-outside="0"' not in document and 'data-buttons="0"' in document
