"""The table of docs/guide/choose.md names every shipped config and no other."""

import re
from fnmatch import fnmatchcase

from support.paths import ROOT
from visionkit.config.shipped import shipped_configs

TEXT = (ROOT / "docs/guide/choose.md").read_text()
TABLE = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| ")]
NAMED = [name for row in TABLE[1:] for name in re.findall(r"`([^`]+)`", row[3])]


def test_every_shipped_config_is_in_the_table():
    assert [cell.strip() for cell in TABLE[0]][3] == "config" and len(NAMED) >= 15
    missing = [name for name in shipped_configs() if not any(fnmatchcase(name, n) for n in NAMED)]
    assert not missing, f"to be added to docs/guide/choose.md: {missing}"


def test_every_name_of_the_table_is_a_shipped_config():
    assert len(NAMED) == len({*NAMED})
    for name in NAMED:
        assert any(fnmatchcase(config, name) for config in shipped_configs()), name


def test_what_it_says_was_reached_is_measured_elsewhere():
    """Numbers come from the page of the task or the head of the config, never from here alone."""
    sources = [*ROOT.glob("docs/tasks/*.md"), *ROOT.glob("docs/guide/[!c]*.md")]
    sources += [*shipped_configs().values(), ROOT / "README.md", ROOT / "scripts/demo"]
    known = {*re.findall(r"\d[\d.,]*\d|\d", " ".join(path.read_text() for path in sources))}
    cells = " ".join(cell for row in TABLE[1:] for cell in row[4:6])
    numbers = {*re.findall(r"\d[\d.,]*\d|\d", cells)}
    assert len(numbers) > 20 and not numbers - known, numbers - known
