"""Write tests/golden/losses.json again: `python tests/golden/write.py` for all tasks, or
`python tests/golden/write.py TASK ...` for some.

To be done on purpose only, when a change is meant to change what is learned (a loss, an initial
value, an augmentation, the order of the data), and committed with that change. Prints how far each
task moved.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden.recipes import RECIPES, losses, machine

FILE = Path(__file__).with_name("losses.json")


def as_text(contents: dict) -> str:
    """JSON with a line for each loss term, so that a diff shows which ones changed."""
    tasks = []
    for task, columns in contents["losses"].items():
        lines = ",\n".join(f"   {json.dumps(name)}: {json.dumps(x)}" for name, x in columns.items())
        tasks.append(f"  {json.dumps(task)}: {{\n{lines}\n  }}")
    found = json.dumps(contents["machine"])
    return f'{{\n "machine": {found},\n "losses": {{\n' + ",\n".join(tasks) + "\n }\n}\n"


def main(tasks: list[str]) -> None:
    stored = json.loads(FILE.read_text())
    if unknown := set(tasks) - RECIPES.keys():
        sys.exit(f"unknown tasks {sorted(unknown)}; choose from {[*RECIPES]}")
    if tasks and stored["machine"] != machine():
        sys.exit(f"{FILE.name} is of another machine or other libraries: write all tasks")
    before = stored["losses"]
    after = {task: losses(task) for task in tasks or RECIPES}
    for task, columns in after.items():
        old = before.get(task, {})
        moved = [
            abs(a - b)
            for name, column in columns.items()
            for a, b in zip(old.get(name, column), column, strict=True)
        ]
        change = (
            f"moved by at most {max(moved):.3g}" if old.keys() == columns.keys() else "new terms"
        )
        print(f"{task}: {change if old else 'new'}")
    found = {
        task: after.get(task) or before[task] for task in RECIPES if task in {**before, **after}
    }
    FILE.write_text(as_text({"machine": machine(), "losses": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
