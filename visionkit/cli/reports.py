"""What `visionkit bench` prints, and the exit code and the JSON file of `visionkit check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionkit.engine.check_report import VERSION, CheckReport
from visionkit.errors import CheckpointError, ConfigError, DataError
from visionkit.runs import files


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


def exit_code(report: CheckReport, *, strict: bool) -> int:
    """The code of the first error that would end training, else 0; `strict` counts warnings."""
    severities = {found.severity for found in report.findings}
    kinds = {found.kind for found in report.findings if found.severity == "error"}
    for kind, error in (("config", ConfigError), ("weights", CheckpointError)):
        if kind in kinds:
            return error.exit_code
    failed = "error" in severities or (strict and "warning" in severities)
    return DataError.exit_code if failed else 0


def write(report: CheckReport, path: Path) -> None:
    """Write the JSON file. An existing file is replaced only if it is a report: a typing error
    must not destroy annotations."""
    if path.exists() and not _is_report(path):
        raise ConfigError(
            f"--json: {path} already exists and is not a visionkit report; choose another file"
        )
    files.write_text(path, files.to_json(report.to_dict()) + "\n")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b'{"version": %d, "file": ' % VERSION)
