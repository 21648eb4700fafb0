"""What `visionkit check` found: on the screen the first, in a JSON file all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionkit.data.checks.findings import Finding
from visionkit.data.checks.kinds import title
from visionkit.data.checks.summary import lines
from visionkit.engine.check import Report
from visionkit.errors import CheckpointError, ConfigError, DataError, plural, printable
from visionkit.runs import files

# --- What `visionkit bench` says about its figures: a table, and what stands out in it.


def report(result: Mapping[str, Any]) -> str:
    """A result of `benchmark` as text for people."""
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
        f"{result['device']}, {result['precision']}, {result['batch']} images a step, "
        f"{result['workers']} workers, {result['steps']} steps",
        "",
    ]
    for part, value in [*list(seconds.items())[1:], ("step", seconds["step"])]:
        share = 100 * value / seconds["step"]
        lines.append(f"{part:<{width}}{1e3 * value:>10.1f} ms{share:>6.0f} %")
    lines += ["", *(f"{name:<{width}}{value:>10.1f}" for name, value in rates.items())]
    return "\n".join([*lines, *(["", *result["advice"]] if result["advice"] else [])])


VERSION = 1  # of the JSON file
SHOWN = 20
SEVERITIES = ("error", "warning", "note")


def ordered(report: Report) -> list[Finding]:
    """Errors, warnings, notes; each in the order of the data."""
    return sorted(report.findings, key=lambda found: SEVERITIES.index(found.severity))


def exit_code(report: Report, *, strict: bool) -> int:
    """0 if there is nothing but notes, and warnings without `strict`; else that of the first
    error that training would end with."""
    severities = {found.severity for found in report.findings}
    kinds = {found.kind for found in report.findings if found.severity == "error"}
    for kind, error in (("config", ConfigError), ("weights", CheckpointError)):
        if kind in kinds:
            return error.exit_code
    return (
        DataError.exit_code if "error" in severities or (strict and "warning" in severities) else 0
    )


def record(report: Report) -> dict[str, Any]:
    """The content of the JSON file, see docs/check.md."""
    counts = Counter(found.severity for found in report.findings)
    return {
        "version": VERSION,
        "file": report.target,
        "counts": {
            **{f"{severity}s": counts[severity] for severity in SEVERITIES},
            "kinds": dict(sorted(Counter(found.kind for found in report.findings).items())),
        },
        "data": report.used,
        "findings": [found.record() for found in ordered(report)],
    }


def write(report: Report, path: Path) -> None:
    """Write the JSON file, as a whole. A file that is there already is only replaced if it is such
    a report: a typing error must not cost annotations."""
    if path.exists() and not _is_report(path):
        raise ConfigError(f"--json: {path} is there already and no report; name a new file")
    files.write_text(path, files.to_json(record(report)) + "\n")


def text(report: Report, written: str | None) -> str:
    """For the screen: some findings of each kind, how many there are, and the data used."""
    findings = ordered(report)
    counts = Counter(found.severity for found in findings)
    summary = ", ".join(plural(counts[severity], severity) for severity in SEVERITIES)
    shown = [f"{report.target}: {summary}"]
    shown += [f"  {found.severity} {found.kind}: {_located(found)}" for found in _some(findings)]
    if len(findings) > SHOWN:
        where = f"all are in {written}" if written else "--json FILE writes all"
        shown.append(f"  ... and {len(findings) - SHOWN} more; {where}")
    kinds = Counter((found.severity, found.kind, found.action) for found in findings)
    if len(findings) > 1:
        shown.append("by kind:")
        shown += [
            f"  {count} {title(kind)} ({kind}, {severity}: {done})"
            for (severity, kind, done), count in kinds.items()
        ]
    shown += [f"data used: {line}" for line in lines(report.used)]
    return printable("\n".join(shown), lines=True)


def _some(findings: list[Finding]) -> list[Finding]:
    """`SHOWN` of them in their order: of each severity as many of each kind as there is room for,
    so that a thousand of one kind do not hide the single one that explains them."""
    turn: Counter[str] = Counter()
    turns = []
    for place, found in enumerate(findings):
        turns.append((SEVERITIES.index(found.severity), turn[found.kind], place))
        turn[found.kind] += 1
    return [findings[place] for place in sorted(place for _, _, place in sorted(turns)[:SHOWN])]


def _located(found: Finding) -> str:
    return f"{found.file}: {found}" if found.file else str(found)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b'{"version": %d, "file": ' % VERSION)
