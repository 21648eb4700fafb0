"""docs/about/reliability.md: every case of its tables names tests that exist, or says why not."""

import ast
import re
from functools import lru_cache

import pytest

from support.paths import ROOT

ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/about/reliability.md").read_text())
# The cases have kept their numbers since the list was drawn up; it has gaps.
NUMBERS = """
1 2 3 5 6 7 8 9 10 11 13 14 15 16 17 18 20 21 22 23 24 26 27 29 30 31 32 33 34 35 36 37 39 40 41 43
44 45 46 49 50 51 52 54 57 59 60 61 62 65 66 67 91 92 93 94 95 96 98 99 100 101 102 105 106 107 109
110 111 112 113 114 115 116 117 121 122 124 125 126 131 133 134 135 136 138 139 140 141 142 143 146
147 148 150 151 153 161 162 163 165 166 167 169 171 172 173 174 181 183 185 187 188
"""


@lru_cache
def known_in(file):
    """The tests of a file: `test_x`, and `TestThing.test_x` for those in classes."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for group in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        functions |= {
            f"{group.name}.{n.name}" for n in group.body if isinstance(n, ast.FunctionDef)
        }
    return functions


def test_every_case_is_there_once_and_in_order():
    assert [number for number, _, _ in ROWS] == NUMBERS.split()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_case_names_tests_that_exist_or_says_why_it_has_none(row):
    _, what, where = row
    if where == "-":
        assert "does not apply" in what or "not tested" in what
        return
    for name in where.split(", "):
        file, _, test = name.strip("`").partition("::")
        assert test in known_in(file), name
