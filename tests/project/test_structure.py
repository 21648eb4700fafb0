"""The package's house rules: short files and functions, few entries at the top."""

import ast
import re

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "visionkit"
FILES = sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("scripts/bench/*.py")])
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_TOP_ENTRIES = 12


def long_functions(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {
        node.name: lines
        for node in functions
        if (lines := node.end_lineno - node.lineno) > MAX_FUNCTION_LINES
    }


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_no_function_is_too_long():
    found = {str(path.relative_to(ROOT)): long_functions(path) for path in FILES}
    assert not {path: functions for path, functions in found.items() if functions}


def test_what_mypy_is_not_to_report_has_a_reason():
    """After the comment, or in one on the line above."""
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if "type: ignore" in line and not re.match(r" *# ", before):
                assert re.search(r"# type: ignore\[[\w,-]+\]  # \w", line), (path, line)


def test_the_top_of_the_package_has_few_entries():
    apart = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    top = {entry.name for entry in PACKAGE.iterdir()} - apart
    assert len(top) <= MAX_TOP_ENTRIES, sorted(top)


@pytest.mark.parametrize("name", ["py.typed", "types.py", "errors.py"])
def test_the_top_of_the_package_has_these_files(name):
    assert (PACKAGE / name).is_file()
