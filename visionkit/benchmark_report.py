"""What `visionkit bench` says about its figures: a table, and what stands out in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from visionkit.build import pick_precision


def report(result: Mapping[str, Any]) -> str:
    """A result of `benchmark` as text for people."""
    seconds = result["seconds"]
    rates = {
        "training, images/s": result["images_per_second"],
        "loader alone, images/s": result["loader_images_per_second"],
    }
    if result["evaluation"]:
        rates["prediction, images/s"] = 1 / result["evaluation"]["predict_seconds"]
        pictures = result["evaluation"]["pictures"]
        rates[f"scoring of {pictures} pictures, s"] = result["evaluation"]["scoring_seconds"]
    rates |= {f"peak memory, {where}, MB": mb for where, mb in result["memory_mb"].items()}
    width = max(map(len, [*seconds, *rates])) + 2
    lines = [
        f"{result['device']}, {result['precision']}, {result['batch']} pictures a step, "
        f"{result['workers']} workers, {result['steps']} steps",
        "",
    ]
    for part, value in [*list(seconds.items())[1:], ("step", seconds["step"])]:
        share = 100 * value / seconds["step"]
        lines.append(f"{part:<{width}}{1e3 * value:>10.1f} ms{share:>6.0f} %")
    lines += ["", *(f"{name:<{width}}{value:>10.1f}" for name, value in rates.items())]
    return "\n".join([*lines, *(["", *result["advice"]] if result["advice"] else [])])


def advice(result: Mapping[str, Any], cores: int) -> list[str]:
    """What stands out in a result, a line for each; `cores` is how many there are to use."""
    seconds, found = result["seconds"], []
    share = {part: round(100 * value / seconds["step"]) for part, value in seconds.items()}
    if share["data"] >= 20:
        wait = f"the loop waits for data {share['data']} % of the time"
        if result["workers"] < cores:
            found.append(f"{wait}: raise data.workers, which is {result['workers']}")
        else:
            found.append(f"{wait}: smaller picture files or fewer transforms would help")
    if share["optimizer"] >= 25:
        found.append(
            f"the optimizer takes {share['optimizer']} % of a step: a larger batch_size shares it "
            "among more pictures"
        )
    device = torch.device(result["device"])
    if result["precision"] == "float32" and pick_precision("auto", device) == torch.bfloat16:
        found.append("this hardware computes in bfloat16: try train.precision=auto")
    return found


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
