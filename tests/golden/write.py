"""Write tests/golden/losses.json again: `python tests/golden/write.py`.

To be done on purpose only, when a change is meant to change what is learned (a loss, an initial
value, an augmentation, the order of the data), and committed with that change. Prints how far each
task moved.
"""

import json
from pathlib import Path

from recipes import HEADS, losses, machine

FILE = Path(__file__).with_name("losses.json")


def as_text(contents: dict) -> str:
    """JSON with a line for each loss term, so that a diff shows which ones changed."""
    tasks = []
    for task, columns in contents["losses"].items():
        lines = ",\n".join(f"   {json.dumps(name)}: {json.dumps(x)}" for name, x in columns.items())
        tasks.append(f"  {json.dumps(task)}: {{\n{lines}\n  }}")
    found = json.dumps(contents["machine"])
    return f'{{\n "machine": {found},\n "losses": {{\n' + ",\n".join(tasks) + "\n }\n}\n"


def main() -> None:
    before = json.loads(FILE.read_text())["losses"] if FILE.exists() else {}
    after = {task: losses(task) for task in HEADS}
    for task, columns in after.items():
        old = before.get(task, {})
        moved = [
            abs(a - b)
            for name, column in columns.items()
            for a, b in zip(old.get(name, column), column, strict=True)
        ]
        same_terms = old.keys() == columns.keys()
        print(f"{task}: " + (f"moved by at most {max(moved):.3g}" if same_terms else "other terms"))
    FILE.write_text(as_text({"machine": machine(), "losses": after}))


if __name__ == "__main__":
    main()
