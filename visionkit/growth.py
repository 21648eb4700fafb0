"""Beginning from a trained model: its weights, its class lists, and what of it stays as it is."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch

from visionkit import checkpoint
from visionkit.config import Config
from visionkit.errors import CheckpointError
from visionkit.model import VisionModel
from visionkit.types import Classes

log = logging.getLogger("visionkit")
OLD_HEADS = "old heads"  # in `train.freeze`: all heads that were taken over


def origin(config: Config) -> dict[str, Any] | None:
    """The checkpoint that `init_from` names, None without it."""
    if config.init_from is None:
        return None
    return checkpoint.load_run(checkpoint.checkpoint_of(config.init_from["run"]))


def classes_taken_over(config: Config, state: dict[str, Any] | None) -> dict[str, Classes]:
    """The class lists of the heads that come from the checkpoint `state` as they are."""
    heads = config.init_from["heads"] if config.init_from else []
    saved = state["classes"] if state else {}
    missing = [head for head in heads if head not in saved]
    if missing:
        raise CheckpointError(f"init_from: the checkpoint has no head {missing[0]!r}")
    return {h: Classes(tuple(saved[h]["names"]), tuple(saved[h]["ids"])) for h in heads}


def load_origin(model: VisionModel, config: Config, state: dict[str, Any]) -> None:
    """Backbone, neck and the heads taken over must fit; of other heads, what fits is loaded."""
    ours, theirs = model.state_dict(), state["model"]
    same = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
    heads = "|".join(map(re.escape, config.init_from["heads"])) or "$"
    taken = re.compile(rf"(backbone|neck)\.|heads\.({heads})\.")
    misfits = [name for name in ours if taken.match(name) and name not in same]
    if misfits:
        raise CheckpointError(
            f"init_from: {config.init_from['run']}: {len(misfits)} tensors do not fit the model, "
            f"{misfits[0]!r} for example"
        )
    with torch.no_grad():
        model.load_state_dict(same, strict=False)
    new = [name for name in ours if name not in same]
    log.info(
        "init_from %s: loaded %d tensors; %d are new", config.init_from["run"], len(same), len(new)
    )


def frozen_patterns(config: Config) -> list[str]:
    """`train.freeze` as regexes."""
    if config.init_from is None:
        return config.train.freeze
    old = [f"^heads\\.{head}\\." for head in config.init_from["heads"]]
    return [
        regex
        for pattern in config.train.freeze
        for regex in (old if pattern == OLD_HEADS else [pattern])
    ]
