"""Write the notebooks of the core tasks: python docs/site/notebooks.py OUT

A notebook is the page of its task: the Python blocks are its cells. So the pages stay the only
source, and their tests are those of the notebooks.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat

from visionkit.errors import DISTRIBUTION

DOCS = Path(__file__).parents[1]
TASKS = ("classification", "localization", "detection", "instance-segmentation")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!http)[^)\s]+\)")
INSTALL = """\
A page of visionkit's documentation. The cells run from top to bottom, on a CPU in some minutes,
after `pip install {}`."""


def notebook(task):
    """The notebook of a task, without outputs."""
    text = (DOCS / f"tasks/{task}.md").read_text()
    made = jupytext.reads(LINK.sub(r"\1", text), "md")  # links to pages lead nowhere from a file
    title, _, rest = made.cells[0].source.partition("\n\n")
    made.cells[0].source = "\n\n".join([title, INSTALL.format(DISTRIBUTION), rest])
    for number, cell in enumerate(made.cells):
        cell.id = f"{task}-{number}"  # not a random one
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        nbformat.write(notebook(task), out / f"{task}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
