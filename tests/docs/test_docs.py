"""The documentation agrees with the code, and the code keeps its own house rules."""

import re

import pytest

from support.paths import ROOT
from visionkit.config.config import settings

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table():
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, allowed, default, meaning in settings():
        shown = (
            "null"
            if default is None
            else str(default).lower()
            if default in (True, False)
            else default
        )
        rows.append(f"| `{name}` | {allowed} | `{shown}` | {meaning} |")
    return "\n".join(rows)


def test_the_config_reference_lists_every_setting_as_it_is():
    page = (ROOT / "docs/guide/config.md").read_text()
    assert settings_table() in page, "\n" + settings_table()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_configs_stay_short_and_have_a_header():
    for path in (ROOT / "configs").glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 50 and lines[0].startswith("# ")
        assert f"visionkit train configs/{path.name}" in path.read_text()
