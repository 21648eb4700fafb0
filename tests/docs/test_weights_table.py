"""The table of published weights in docs/guide/weights.md is that of the registry.

    python tests/docs/test_weights_table.py

writes it again.
"""

import re
from pathlib import Path

from visionkit.models.published import entries

PAGE = Path(__file__).parents[2] / "docs/guide/weights.md"
PLACE = re.compile(r"(<!-- made from .*? -->\n).*?(<!-- end of the table -->)", re.DOTALL)


def table():
    rows = ["| name | box AP | mask AP | mIoU | MB |", "|---|---|---|---|---|"]
    for one in entries():
        if one.kind == "model":
            values = [one.metrics.get(key, "") for key in ("box AP", "mask AP", "mIoU")]
            rows.append(f"| `{one.name}` | {' | '.join(map(str, values))} | {one.size:.0f} |")
    return "\n".join(rows)


def written():
    return PLACE.sub(lambda place: f"{place[1]}\n{table()}\n\n{place[2]}", PAGE.read_text())


def test_the_page_has_the_table_of_the_registry():
    assert PAGE.read_text() == written(), "run: python tests/docs/test_weights_table.py"


if __name__ == "__main__":
    PAGE.write_text(written())
