"""A bundle: a folder with a trained model for a hub, of files that hold no code.

model.safetensors    weights, config, classes and thresholds: all that `visionkit.load` needs
config.yaml          the config, for people and for `visionkit train`
classes.json         names and ids of the classes of each head
README.md            a model card, whose gaps its author fills in
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from visionkit.config import Config, load_config
from visionkit.config.components import resolve
from visionkit.engine.torch_model import class_lists_of
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    install_hint,
    package_version,
    plural,
    printable,
)
from visionkit.metrics.report import metric_lines
from visionkit.metrics.thresholds import Thresholds, saved_thresholds
from visionkit.runs import checkpoint, directory, files, hub, safetensors_file
from visionkit.runs.download import sha256
from visionkit.types import Classes

CARD = "README.md"
# The task by which the hub lists a model, by a target of the head.
TASKS = {
    "masks": "image-segmentation",
    "semantic": "image-segmentation",
    "boxes": "object-detection",
    "class_id": "image-classification",
    "identity": "image-feature-extraction",
}


def write_bundle(run: str | Path, out: str | Path, *, allow_plugins: bool = False) -> Path:
    """Write a new folder with the best weights of a run, or of a checkpoint; returns its path.

    The folder appears as a whole or not at all. ArgumentError if something of that name exists,
    CheckpointError for weights that cannot be read or are not finite, or if the disk refuses it.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise ArgumentError(f"{out}: exists; delete it or choose another name")
    if not out.absolute().parent.is_dir():
        raise ArgumentError(f"{out}: the folder {out.absolute().parent} does not exist")
    path, state = checkpoint.load_latest(run)
    content = checkpoint.portable(path, state)
    config = load_config(content["config"], origin=path, allow_plugins=allow_plugins)
    texts = {"config.yaml": config.to_yaml(), "classes.json": _classes_text(content["classes"])}
    content["files"] = {name: checkpoint.digest_copy(text) for name, text in texts.items()}
    texts[CARD] = _card(path, state, config)
    temporary = out.with_name(f"{out.name}.tmp.{os.getpid()}")
    try:
        temporary.mkdir()
        safetensors_file.write(content, temporary / hub.DEFAULT)
        for name, text in texts.items():
            files.write_new(temporary / name, text)
        os.rename(temporary, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {files.reason(error)}") from error
    finally:
        with suppress(OSError):  # it has its name
            shutil.rmtree(temporary)
    return out


def _classes_text(classes: Mapping[str, Any]) -> str:
    """JSON with a line for each list."""
    return json.dumps(classes, indent=2, ensure_ascii=False) + "\n"


def _card(path: Path, state: dict[str, Any], config: Config) -> str:
    """The text of the model card. `path` is the checkpoint, perhaps within its run."""
    return "\n".join(
        [
            *_front_matter(config),
            f"# {_inline(config.name)}",
            "",
            "<!-- Fill in: what the model is for, and what it is not for. -->",
            "",
            *_model_lines(config, class_lists_of(state)),
            *_usage_lines(),
            *_metric_lines(state),
            *_threshold_lines(saved_thresholds(state)),
            *_data_lines(directory.read_data(path.parent.parent)),
            "## License",
            "",
            "<!-- Fill in: the license of the weights, here and as `license:` at the top; say also",
            "what the licenses of the training data and of pretrained weights demand. -->",
            "",
            "## Made with",
            "",
            f"visionkit {package_version()}, torch {torch.__version__}; checkpoint with SHA-256",
            f"`{sha256(path)}`.",
            "",
        ]
    )


def _front_matter(config: Config) -> list[str]:
    """The YAML block from which a hub reads license, library and task."""
    found = {_hub_task(spec["type"]) for spec in config.heads.values()}
    task = f"pipeline_tag: {found.pop()}" if len(found) == 1 and None not in found else None
    return [
        "---",
        "# license: fill in, such as mit or apache-2.0",
        "library_name: visionkit",
        *([task] if task else []),
        "tags: [visionkit, computer-vision]",
        "---",
        "",
    ]


def _hub_task(head: str) -> str | None:
    """The hub's name of what a head does; None for others and custom heads."""
    targets = () if "." in head else resolve("heads", head).required_targets
    return next((task for target, task in TASKS.items() if target in targets), None)


def _model_lines(config: Config, classes: Mapping[str, Classes]) -> Iterator[str]:
    yield from ("## Model", "", f"{_inline(config.architecture)}.", "")
    yield from ("| head | type | image size | classes |", "|---|---|---|---|")
    sizes = {head: source.image_size for source in config.data.values() for head in source.feeds}
    for head, spec in config.heads.items():
        names = ", ".join(classes[head].names) if head in classes else ""
        yield _row(head, spec["type"], sizes.get(head, ""), names)
    yield ""


def _usage_lines() -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        f"import visionkit  # {install_hint('hub')}",
        "",
        'model = visionkit.load("hf://owner/name")  # or the path of this folder',
        'print(model.predict("a.jpg"))',
        "```",
        "",
    ]


def _metric_lines(state: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Metrics", "")
    metrics = {
        name: float(value)
        for name, value in (state.get("metrics") or {}).items()
        if "/loss/" not in name
    }
    if not metrics:
        yield from ("The run was not validated.", "")
        return
    yield from (f"On the validation data, after {plural(state.get('step', 0), 'step')}:", "")
    yield from ("```", *metric_lines(metrics), "```", "")


def _threshold_lines(found: Mapping[str, Thresholds]) -> Iterator[str]:
    """The scores from which objects count."""
    if not found:
        return
    yield from ("## Thresholds", "", "Scores with the best F1 on the validation data, which")
    yield from ("`predict` uses by default.", "", "| head | class | score |", "|---|---|---|")
    for head, one in found.items():
        for name, score in {"all": one.common, **one.classes}.items():
            yield _row(head, name, f"{score:.3f}")
    yield ""


def _data_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What the model was trained and validated with, from data.json of the run."""
    yield from ("## Data", "", "<!-- Fill in: where the data are from, and their license. -->", "")
    try:
        rows = [
            _row(
                f"{source}.{split}",
                *(one["images"], one["objects"], sum(one["dropped"].values())),
                one["fingerprint"],
            )
            for source, splits in record["sources"].items()
            for split, one in splits.items()
        ]
    except (KeyError, TypeError, AttributeError):  # not there, or damaged
        yield from ("The run's record of its data was not at hand.", "")
        return
    yield from ("| data | images | objects | dropped | fingerprint |", "|---|---|---|---|---|")
    yield from (*rows, "")
    yield from ("A fingerprint is a hash of the annotations, for folders of the file names.", "")


def _row(*cells: object) -> str:
    return f"| {' | '.join(_inline(str(cell)) for cell in cells)} |"


def _inline(text: str) -> str:
    """A name within a line or a table of Markdown, without effect on either."""
    return "".join(f"\\{c}" if c in "\\`*|<>[]" else c for c in printable(text))
