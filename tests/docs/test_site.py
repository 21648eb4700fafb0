"""The documentation site: it builds without a warning, its links lead somewhere, it is complete."""

import importlib
import inspect
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from test_docs import PAGES, resolved

import visionkit
from support.paths import ROOT
from visionkit.config.components import PACKAGES, components

MKDOCS = ROOT / "docs/site/mkdocs.yml"
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}


class Page(HTMLParser):
    """The links of a page, its ids, its text, and what a browser loads for it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.loaded, self.text = [], set(), [], ""
        self.feed(path.read_text())

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in LOADED and attrs.get(LOADED[tag]):
            self.loaded.append(attrs[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the built site, by their path in it."""
    out = tmp_path_factory.mktemp("site")
    config = load_config(str(MKDOCS), site_dir=str(out), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # raises on the first warning, after the log of all
    config.plugins.on_shutdown()
    logging.getLogger("mkdocs").handlers.clear()
    return {str(path.relative_to(out)): Page(path) for path in out.rglob("*.html")}


@pytest.fixture(scope="module")
def anchors(site):
    return {anchor for page in site.values() for anchor in page.ids if anchor}


def test_every_page_is_in_the_navigation(site):
    text = MKDOCS.read_text()
    listed = set(re.findall(r"[\w/-]+\.md$", text[text.index("\nnav:") :], re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= listed, f"to be added under `nav:` of {MKDOCS}: {sorted(pages - listed)}"
    assert {page.removesuffix(".md") + ".html" for page in listed} | {"404.html"} == site.keys()


def test_links_and_anchors_lead_somewhere(site):
    checked = 0
    for path, page in site.items():
        if path == "404.html":  # its links are absolute
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"https?:|mailto:", target):
                continue
            file = str((Path("/", path).parent / target).resolve())[1:] if target else path
            file = file or "index.html"
            assert file in site or file.endswith(".ipynb"), (path, link)
            assert not anchor or anchor in site[file].ids, (path, link)
            checked += 1
    assert checked > 1000


def test_it_needs_nothing_from_the_internet(site):
    loaded = [url for page in site.values() for url in page.loaded]
    assert len(loaded) > 100 and not [url for url in loaded if re.match(r"(https?:)?//", url)]


def test_every_public_name_has_its_place(anchors):
    names = [f"visionkit.{name}" for name in visionkit.__all__]
    for section, package in PACKAGES.items():
        ours = {
            n for n, cls in components(section).items() if cls.__module__.startswith("visionkit")
        }
        names += [f"{package}.{name}" for name in ours]  # torch documents its optimizers
    assert {*names} <= anchors, {*names} - anchors


def test_classes_and_functions_that_pages_name_are_in_the_api(anchors):
    text = "".join(page.read_text() for page in PAGES)
    for name in {*re.findall(r"\bvisionkit(?:\.[A-Za-z_]\w*)+", text)}:
        value = resolved(name)
        if inspect.isclass(value) or inspect.isfunction(value):
            short = f"visionkit.{value.__name__}"
            assert {name, short} & anchors, name


def test_the_api_pages_say_what_docstrings_and_comments_say(site):
    assert "class of the whole image" in site["api/types.html"].text  # the comment of a field
    assert "RUN/eval/<head>_bbox.json" in site["api/index.html"].text
    assert "visionkit.Predictor.predict_batch" in site["api/index.html"].ids  # of its base class


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(MKDOCS.parent)
    return importlib.import_module("hooks")


def test_lists_of_arguments_become_bullets(hooks):
    text = "What it does.\n\nsize: of the image.\nlow, high_*: bounds\n    of it.\n\nNote: none."
    lists = "- `size`: of the image.\n- `low, high_*`: bounds\n    of it."
    assert hooks.bulleted(text) == f"What it does.\n\n{lists}\n\nNote: none."


def test_angle_brackets_are_no_tags_outside_of_code(hooks):
    assert hooks.escaped("a <b> `<c>`\n\n    <d>\n") == "a &lt;b> `<c>`\n\n    <d>\n"


@pytest.mark.parametrize(
    ("source", "link", "there"),
    [
        ("README.md", "docs/guide/data.md#images", "guide/data.md#images"),
        ("README.md", "CONTRIBUTING.md", "about/contributing.md"),
        ("docs/guide/data.md", "../../README.md#tasks", "../index.md#tasks"),
        ("docs/guide/data.md", "config.md", "config.md"),
        ("CONTRIBUTING.md", "README.md#tasks", "../index.md#tasks"),
        ("docs/guide/data.md", "#images", "#images"),
        ("README.md", "https://a.b/c", "https://a.b/c"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks, source, link, there):
    assert hooks.rewritten(f"[a]({link})", source) == f"[a]({there})"


def test_a_link_to_what_the_site_lacks_becomes_words_and_code_stays(hooks):
    text = "```\n[a](LICENSE)\n```\n[license](LICENSE)"
    assert hooks.rewritten(text, "README.md") == "```\n[a](LICENSE)\n```\nlicense"
