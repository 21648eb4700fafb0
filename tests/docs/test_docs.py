"""The documentation agrees with the code: settings, links, anchors, paths."""

import importlib
import re
from pathlib import Path

import pytest

import visionkit
from support.paths import CONFIGS, ROOT
from support.settings import settings
from visionkit.config.components import PACKAGES, components

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def settings_table():
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, allowed, default, meaning in settings():
        shown = "null" if default is None else default
        shown = str(default).lower() if isinstance(default, bool) else shown
        rows.append(f"| `{name}` | {allowed} | `{shown}` | {meaning} |")
    return "\n".join(rows)


def anchors(page: Path):
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_the_config_reference_lists_every_setting_as_it_is():
    page = (ROOT / "docs/guide/config.md").read_text()
    assert settings_table() in page, "\n" + settings_table()


@pytest.mark.parametrize("section", PACKAGES)
def test_the_config_reference_lists_every_component(section):
    page = (ROOT / "docs/guide/config.md").read_text()
    row = re.search(rf"^\| {section} \| (.*) \|$", page, re.MULTILINE)[1]
    named = re.findall(r"`(\w+)`", row)
    assert sorted(named) == sorted(components(section))


def test_the_readme_lists_every_head():
    tasks = (ROOT / "README.md").read_text().partition("## Tasks")[2].partition("\n## ")[0]
    assert {*components("heads")} <= {*re.findall(r"`(\w+)`", tasks)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_anchors_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(readme)}
    assert {page for page in PAGES if page.name != "README.md"} <= linked


def test_paths_in_the_table_of_what_to_touch_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## What to touch") :]
    assert len(re.findall(r"^\| [^-]", table, re.MULTILINE)) == 11  # ten rows below the titles
    for path in re.findall(r"`((?:visionkit|tests|docs)/[^`<]*)`", table):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_paths_of_the_repository_exist(page):
    for path in re.findall(
        r"`((?:visionkit|tests|scripts|configs|docs)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def resolved(dotted):
    """What a name such as `visionkit.engine.train.train` means."""
    parts, value = dotted.split(".")[1:], visionkit
    for i, part in enumerate(parts, start=2):
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(".".join(dotted.split(".")[:i]))
    return value


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.stem)
def test_python_names_of_the_pages_exist(page):
    text = page.read_text()
    if page.name == "CHANGELOG.md":  # the names of 0.2, in the second column of a table
        newest = re.split(r"(?m)^## ", text)[1]
        text = "\n".join(re.findall(r"^\| [^|]* \| ([^|]*) \|$", newest, re.MULTILINE))
    for name in re.findall(r"\bvisionkit(?:\.[A-Za-z_]\w*)+", text):
        assert resolved(name) is not None, name


def test_configs_stay_short_and_have_a_header():
    for path in CONFIGS.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 50 and lines[0].startswith("# ")
        assert re.search(rf"visionkit train {path.stem}\s", path.read_text())
