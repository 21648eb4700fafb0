"""Files of RT-DETR as the package transformers writes them: the names of their tensors in ours, and
the classes of their outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from visionkit.errors import CheckpointError
from visionkit.runs import hub

CONFIG = "config.json"  # next to the weights, with the names of the classes
EMBEDDING = "denoising_class_embed.weight"
# Names in files, without `model.` before them, to those that transformers 5 has in its models
LEGACY = (
    (r"\.out_proj\.", ".o_proj."),
    (r"\.layers\.(\d+)\.(fc[12])\.", r".layers.\1.mlp.\2."),
    (r"^encoder\.encoder\.(\d+)\.layers\.", r"encoder.aifi.\1.layers."),
    (r"^((?:class|bbox)_embed\.)", r"decoder.\1"),  # tied to those of the decoder
)
BACKBONE = r"^backbone\.model\."
LAYER = BACKBONE + r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
OURS = (
    (BACKBONE + r"embedder\.embedder\.2\.normalization\.", "backbone.body.bn1."),
    *(
        (BACKBONE + rf"embedder\.embedder\.{n}\.convolution\.", f"backbone.body.conv1.{3 * n}.")
        for n in range(3)
    ),
    *(
        (
            BACKBONE + rf"embedder\.embedder\.{n}\.normalization\.",
            f"backbone.body.conv1.{3 * n + 1}.",
        )
        for n in range(2)
    ),
    (r"^encoder_input_proj\.", "neck.encoder_input_proj."),
    (r"^encoder\.aifi\.0\.layers\.", "neck.layers."),
    (r"^encoder\.", "neck."),
)


def is_rtdetr(state: Mapping[str, Tensor]) -> bool:
    """Whether it is of an RT-DETR (v1 or v2) of transformers."""
    names = {name.removeprefix("model.") for name in state}
    return {"enc_score_head.weight", "encoder_input_proj.0.0.weight"} <= names


def our_names(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors of such a model under the names that they have in ours, whose head has that
    name. What ours lacks is dropped: copies of the predictors, constants, and the embedding of
    padding, the last row."""
    found = {}
    for name, tensor in state.items():
        ours = _our_name(name, head)
        if ours is not None:
            found[ours] = tensor[:-1] if name.endswith(EMBEDDING) else tensor
    return found


def _our_name(name: str, head: str) -> str | None:
    name = name.removeprefix("model.")
    for pattern, replacement in LEGACY:
        name = re.sub(pattern, replacement, name)
    if name.endswith((".n_points_scale", ".anchors", ".valid_mask")):
        return None
    if match := re.match(LAYER, name):
        return _of_layer(name[match.end() :], int(match[1]) + 1, match[2])
    for pattern, replacement in OURS:
        ours = re.sub(pattern, replacement, name)
        if ours != name:
            return ours
    return f"heads.{head}.{name}"


def _of_layer(rest: str, stage: int, block: str) -> str:
    """The name of a tensor of a block of the backbone."""
    for pattern, replacement in (
        (r"^layer\.(\d)\.convolution\.", lambda m: f"conv{int(m[1]) + 1}."),
        (r"^layer\.(\d)\.normalization\.", lambda m: f"bn{int(m[1]) + 1}."),
        (r"^shortcut\.(1\.)?convolution\.", lambda m: "downsample.1."),
        (r"^shortcut\.(1\.)?normalization\.", lambda m: "downsample.2."),
    ):
        rest = re.sub(pattern, replacement, rest)
    return f"backbone.body.layer{stage}.{block}.{rest}"


def class_names(path: str, count: int, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of the `count` outputs: those that `config.json` next to the file, or in the same
    repository, names; without it `usual`, if they are as many, or none.

    CheckpointError if the file is another one.
    """
    if (config := _config_of(path)) is None:
        return usual if len(usual) == count else ()
    try:
        names = json.loads(config.read_text(encoding="utf-8"))["id2label"]
        found = tuple(str(names[str(number)]) for number in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{config}: names no classes (id2label): {error!r}; it is read because it lies next to "
            f"{path}; repair it, or move it away"
        ) from error
    if len(found) != count:
        raise CheckpointError(
            f"{config}: names {len(found)} classes, and {path} has {count} outputs; it is of "
            "another model: move it away"
        )
    return found


def _config_of(path: str) -> Path | None:
    if hub.is_hub(path):
        address = hub.parse(path)._replace(file=CONFIG)
        try:
            return hub.fetch(str(address))
        except CheckpointError:
            return None
    config = Path(path).parent / CONFIG
    return config if config.is_file() else None
