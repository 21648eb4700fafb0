"""Every case of failures that visionkit promises to handle has tests that exist."""

import ast
from functools import lru_cache

import pytest
from reliability_cases import CASES

from support.paths import ROOT

NOT_APPLICABLE = {66, 185}  # conversion of data and export, which visionkit does not have
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


def test_every_case_is_listed_in_order():
    assert [*CASES] == [int(number) for number in NUMBERS.split()]
    assert {case for case, tests in CASES.items() if not tests} == NOT_APPLICABLE


@pytest.mark.parametrize("case", CASES)
def test_the_tests_of_a_case_exist(case):
    for test in CASES[case]:
        file, _, name = test.partition("::")
        assert (ROOT / "tests" / file).is_file(), test
        assert name in known_in(file), test


def test_the_page_of_promises_is_short():
    assert len((ROOT / "docs/about/reliability.md").read_bytes()) <= 8 * 1024
