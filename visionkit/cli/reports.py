"""What `visionkit check` and `visionkit bench` print, and the JSON file of `check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import DONE, Finding
from visionkit.data.checks.kinds import title
from visionkit.data.checks.summary import summary_lines
from visionkit.engine.check import Report
from visionkit.errors import CheckpointError, ConfigError, DataError, plural, printable
from visionkit.runs import files

VERSION = 1  # of the JSON file
SHOWN = 20  # findings on the screen
SEVERITIES = ("error", "warning", "note")


def bench_text(result: Mapping[str, Any]) -> str:
    """The result of `visionkit bench` as a table, with advice."""
    seconds = result["seconds"]
    rates = {
        "training, images/s": result["images_per_second"],
        "loader alone, images/s": result["loader_images_per_second"],
    }
    if result["evaluation"]:
        rates["prediction, images/s"] = 1 / result["evaluation"]["predict_seconds"]
        images = result["evaluation"]["images"]
        rates[f"scoring of {images} images, s"] = result["evaluation"]["scoring_seconds"]
    rates |= {f"peak memory, {where}, MB": mb for where, mb in result["memory_mb"].items()}
    width = max(map(len, [*seconds, *rates])) + 2
    lines = [
        f"{result['device']}, {result['precision']}, {result['batch']} images per step, "
        f"{result['workers']} workers, {result['steps']} steps",
        "",
    ]
    for part, value in [*list(seconds.items())[1:], ("step", seconds["step"])]:
        share = 100 * value / seconds["step"]
        lines.append(f"{part:<{width}}{1e3 * value:>10.1f} ms{share:>6.0f} %")
    lines += ["", *(f"{name:<{width}}{value:>10.1f}" for name, value in rates.items())]
    return "\n".join([*lines, *(["", *result["advice"]] if result["advice"] else [])])


def exit_code(report: Report, *, strict: bool) -> int:
    """The code of the first error that would end training, else 0; `strict` counts warnings."""
    severities = {found.severity for found in report.findings}
    kinds = {found.kind for found in report.findings if found.severity == "error"}
    for kind, error in (("config", ConfigError), ("weights", CheckpointError)):
        if kind in kinds:
            return error.exit_code
    failed = "error" in severities or (strict and "warning" in severities)
    return DataError.exit_code if failed else 0


def write(report: Report, path: Path) -> None:
    """Write the JSON file. An existing file is replaced only if it is a report: a typing error
    must not destroy annotations."""
    if path.exists() and not _is_report(path):
        raise ConfigError(
            f"--json: {path} already exists and is not a visionkit report; choose another file"
        )
    files.write_text(path, files.to_json(record(report)) + "\n")


def record(report: Report) -> dict[str, Any]:
    """The content of the JSON file, see docs/guide/data-checks.md."""
    counts = _severities(report)
    return {
        "version": VERSION,
        "file": report.target,
        "counts": {
            **{f"{severity}s": counts[severity] for severity in SEVERITIES},
            "kinds": dict(sorted(Counter(found.kind for found in report.findings).items())),
        },
        "data": report.used,
        "findings": [found.record() for found in _ordered(report)],
    }


def text(report: Report, written: str | None) -> str:
    """The report on the screen: some findings of each kind, counts by kind, and the data used.
    `written` is the path of the JSON file."""
    findings, counts = _ordered(report), _severities(report)
    summary = ", ".join(plural(counts[severity], severity) for severity in SEVERITIES)
    shown = [f"{printable(report.target)}: {summary}"]
    shown += [
        f"  {found.severity} {found.kind}: {_located(found, report.target)}"
        for found in _selected(findings)
    ]
    if len(findings) > SHOWN:
        where = f"all are in {written}" if written else "--json FILE writes all"
        shown.append(f"  ... and {len(findings) - SHOWN} more; {where}")
    kinds = Counter((found.severity, found.kind, found.action) for found in findings)
    if len(findings) > len(kinds):
        shown.append("by kind:")
        for (severity, kind, action), count in kinds.items():
            done = f", {DONE[action]}" if action in DONE else ""
            shown.append(f"  {count} x {kind} ({severity}{done}): {title(kind)}")
    shown += [printable(f"data used: {line}") for line in summary_lines(report.used)]
    return "\n".join(shown)


def _located(found: Finding, target: str) -> str:
    """The finding with its file, unless that is the checked one."""
    return str(found) if found.file in ("", target) else f"{printable(found.file)}: {found}"


def _ordered(report: Report) -> list[Finding]:
    """Errors, warnings, notes; each in the order of the data."""
    return sorted(report.findings, key=lambda found: SEVERITIES.index(found.severity))


def _severities(report: Report) -> Counter[str]:
    return Counter(found.severity for found in report.findings)


def _selected(findings: list[Finding]) -> list[Finding]:
    """At most `SHOWN` findings in their order: severe ones first, then the first of each kind, the
    second of each kind and so on, so that many of one kind do not hide a rare one."""
    seen: Counter[str] = Counter()
    ranked = []
    for index, found in enumerate(findings):
        ranked.append((SEVERITIES.index(found.severity), seen[found.kind], index))
        seen[found.kind] += 1
    return [findings[index] for index in sorted(index for _, _, index in sorted(ranked)[:SHOWN])]


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b'{"version": %d, "file": ' % VERSION)
