"""What `visionkit bench` prints, and the exit code and the JSON file of `visionkit check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionkit.engine.check_report import VERSION, CheckReport
from visionkit.errors import CheckpointError, ConfigError, DataError, listed, plural
from visionkit.runs import files


def bench_text(result: Mapping[str, Any]) -> str:
    """The result of `visionkit bench` as a table, with advice."""
    if "variants" in result:
        return _latency_text(result)
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


def export_text(record: Mapping[str, Any]) -> list[str]:
    """What `visionkit export` wrote and how it was checked, in lines."""
    if record["format"] == "bundle":
        return [f"wrote {record['file']}: {record['bytes'] / 1e6:.1f} MB"]
    size, seconds, check = record["size"], record["seconds"], record["check"]
    sides = "any size" if size is None else f"{size[0]}x{size[1]} (height x width)"
    images = " and ".join(f"{count} images of {name}" for name, count in check["images"].items())
    lines = [
        f"wrote {record['file']}: {record['bytes'] / 1e6:.1f} MB, {record['precision']}, images of "
        f"{sides}, {record['batch'] or 'any number'} at once",
        f"exported in {seconds['export']:.0f} s, checked in {seconds['check']:.0f} s on {images}",
    ]
    if before := record["fp32"]:
        lines.append(
            f"fp32: {before['bytes'] / 1e6:.1f} MB, {before['milliseconds']:.1f} ms for an image; "
            f"{record['precision']}: {record['bytes'] / 1e6:.1f} MB, "
            f"{record['milliseconds']:.1f} ms"
        )
    if check["generated"]:
        lines.append(f"generated images replace validation data: {check['generated']}")
    rows = [("head", "compared", "difference")]
    for head, one in check["heads"].items():
        rows += [(head, f"largest of {k}", f"{value:.1e}") for k, value in one["tensors"].items()]
        if one["unit"]:
            same = f"{one['matched']:,} of {one['total']:,} are the same"
            rows.append((head, f"{one['unit']}s", same))
        if one["metric"] and one["model"] == one["model"]:
            values = f"{one['model']:.4f}, of the file {one['file']:.4f}"
            rows.append((head, one["metric"], values))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def _latency_text(result: Mapping[str, Any]) -> str:
    """A table for each number of images, with a line for each variant."""
    variants = result["variants"]
    width = max(map(len, variants)) + 2
    parts = [*next(iter(next(iter(variants.values()))["batches"].values()))["shares"]]
    sizes = sorted({f"{height}x{width}" for height, width in result["images"]})
    lines = [
        f"{plural(result['threads'], 'thread')}, {plural(result['steps'], 'round')}, images of "
        f"{listed(sizes, 3)} pixels (h x w)"
    ]
    for size in next(iter(variants.values()))["batches"]:
        columns = ["images/s", "p50 ms", "p90 ms", "p99 ms", *parts]
        title = f"batch of {size}"
        lines += ["", f"{title:<{width}}" + "".join(f"{column:>10}" for column in columns)]
        for name, variant in variants.items():
            one = variant["batches"][size]
            numbers = [one["images_per_second"], *one["milliseconds"].values()]
            lines.append(
                f"{name:<{width}}"
                + "".join(f"{number:>10.1f}" for number in numbers)
                + "".join(f"{100 * one['shares'][part]:>8.0f} %" for part in parts)
            )
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
