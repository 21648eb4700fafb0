"""Cross-validation: one run for each fold that `visionkit data kfold` made."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from visionkit.config import Config, load_config
from visionkit.config.components import arguments_of, main_metric, resolve
from visionkit.config.yaml import read as read_yaml
from visionkit.data.build import SPLITS, open_sources
from visionkit.data.checks.summary import fingerprint
from visionkit.data.datasets import Coco, ImageFolder, Shapes
from visionkit.data.datasets.label_files import LabelFiles
from visionkit.data.loading.source import iter_splits
from visionkit.data.tools.split import FOLDS, VERSION
from visionkit.distributed import collectives
from visionkit.engine.state import flattened
from visionkit.engine.train import train
from visionkit.errors import ArgumentError, ConfigError, Preempted, check_flags, listed, printable
from visionkit.metrics.folds import NOTE, Spread, fold_lines, spreads
from visionkit.runs import checkpoint, directory, files

log = logging.getLogger("visionkit")

OF_FOLDER = ("root", "split", "names", "images")  # of datasets that become COCO files


class Folds(NamedTuple):
    """The folds in a folder."""

    folder: Path
    k: int
    images: Path | None  # the folder of the images, if kfold knew it
    fingerprint: str  # of the labels that were divided

    def annotations(self, number: int, split: str) -> Path:
        """The COCO file of a fold, counted from 1; `split` is train or val."""
        return self.folder / f"fold-{number}" / f"{split}.json"


class TrainedFolds(NamedTuple):
    """What `train_folds` returns."""

    runs: list[Path]
    metrics: dict[str, Spread]  # by name, of the best checkpoint of each fold
    main: list[str]  # the names of the main metrics
    file: Path  # that has all of this

    def lines(self) -> list[str]:
        """What to print."""
        return [*fold_lines(self.metrics, self.main), NOTE, f"wrote {self.file}"]


def read_folds(folder: str | Path) -> Folds:
    """The folds that `visionkit data kfold` wrote. ConfigError if there are none, or not all."""
    folder = Path(folder)
    try:
        with files.open_regular(folder / FOLDS) as file:
            record = json.load(file)
    except (OSError, ValueError) as error:
        what = f"--folds: {printable(folder)} has no readable {FOLDS} [{error}]"
        raise ConfigError(f"{what}; make one with `visionkit data kfold`") from None
    try:
        version, k, images = record["version"], record["k"], record["images"]
        fingerprint = record["source"]["fingerprint"]
    except (KeyError, TypeError):
        version = k = images = fingerprint = None
    if version != VERSION or type(k) is not int or k < 2 or not isinstance(images, str | None):
        what = f"--folds: {printable(folder / FOLDS)} was not written by this version of visionkit"
        raise ConfigError(f"{what}; repeat `visionkit data kfold`")
    found = Folds(folder, k, None if images is None else Path(images), str(fingerprint))
    wanted = [found.annotations(n, split) for n in range(1, k + 1) for split in ("train", "val")]
    if missing := [printable(path) for path in wanted if not path.is_file()]:
        raise ConfigError(
            f"--folds: not found: {listed(missing, 5)}; repeat `visionkit data kfold`"
        )
    return found


def fold_config(config: Config, folds: Folds, number: int) -> Config:
    """The config of one fold: its data are those of the fold, and its output ends with the number.

    The dataset becomes or stays a COCO file with the same arguments. Its images are those of the
    config if it has one folder for training and validation, else those that kfold knew.
    ConfigError if the folds cannot replace the data of the config.
    """
    problems = []
    if len(config.data) != 1:
        problems.append(f"--folds: the config has {len(config.data)} sources; folds replace one")
    if not config.train.validate:
        problems.append("train.validate: got false; folds are compared by their validation")
    if problems:
        raise ConfigError(*problems)
    name, source = next(iter(config.data.items()))
    given = [spec for spec in (source.train, source.val) if spec is not None]
    folders = {spec["images"] for spec in given if _takes_files(spec) and spec.get("images")}
    images = folders.pop() if len(folders) == 1 else folds.images and str(folds.images)
    if images is None:
        raise ConfigError(
            f"data.train.images: missing, and {printable(folds.folder / FOLDS)} does not have it; "
            "give data.train.images=DIR, or repeat `visionkit data kfold` with --images DIR"
        )
    values = config.to_dict()
    values["data"][name]["holdout"] = None  # the fold says what validates
    for split, spec in (("train", source.train), ("val", source.val or source.train)):
        file = str(folds.annotations(number, split))
        values["data"][name][split] = {
            **_arguments(spec or {}, split),
            **{"images": images, "annotations": file},
        }
    values["output"] = f"{_base(config)}-fold-{number}"
    return load_config(values)


def _takes_files(spec: Mapping[str, Any]) -> bool:
    """Whether a dataset is made from a folder of images and an annotation file."""
    return {"images", "annotations"} <= arguments_of("datasets", spec["type"]).keys()


def _arguments(spec: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The spec of a dataset of a COCO file like the given one. ConfigError if there is none."""
    if not spec:
        raise ConfigError(f"data.{split}: missing; the folds replace a dataset")
    if _takes_files(spec):
        return dict(spec)
    cls = resolve("datasets", spec["type"])
    if issubclass(cls, Shapes):  # generated images stand for any data
        return {"type": Coco.__name__}
    if issubclass(cls, LabelFiles | ImageFolder):
        accepted = arguments_of("datasets", Coco.__name__)
        kept = {key: value for key, value in spec.items() if key not in (*OF_FOLDER, "type")}
        if unknown := [key for key, value in kept.items() if key not in accepted and value]:
            what = f"data.{split}.{unknown[0]}: does not apply to the COCO files of folds"
            raise ConfigError(f"{what}; remove it")
        return {"type": Coco.__name__} | {k: v for k, v in kept.items() if k in accepted}
    raise ConfigError(
        f"data.{split}: has the type {spec['type']}; folds are COCO files and can replace only "
        "datasets of type Coco, of other formats of labels, and class folders"
    )


def _base(config: Config) -> Path:
    return Path(config.output) if config.output is not None else Path("runs") / config.name


def train_folds(
    config: Config | str | Path | Mapping[str, Any],
    folds: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
) -> TrainedFolds:
    """Train a config once for each fold, one after the other.

    config, overrides: as for `train`.
    folds: the folder that `visionkit data kfold` wrote.
    resume: skip the folds that are finished, continue the one that was interrupted, train the
        others.
    overwrite: replace the runs of all folds.
    strict: as for `train`.

    The runs are `<output>-fold-1` and so on, by default in `runs/<name>-fold-1`; their metrics are
    written to `<output>-folds.json`. Raises what `train` raises, and ConfigError if the folds
    cannot replace the data of the config or there are other runs in the place of these.
    """
    check_flags(resume=resume, overwrite=overwrite, strict=strict)
    if resume and overwrite:
        raise ArgumentError("resume continues the runs, overwrite replaces them: give only one")
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    found = read_folds(folds)
    configs = [fold_config(config, found, number) for number in range(1, found.k + 1)]
    base = _base(config)
    file = base.with_name(f"{base.name}-folds.json")
    collectives.setup()
    states = collectives.on_main_rank(
        lambda: _states(configs, file, resume=resume, overwrite=overwrite)
    )
    runs, metrics = [], []
    for number, (one, state) in enumerate(zip(configs, states, strict=True), start=1):
        run = Path(str(one.output))
        runs.append(run)
        if state == "finished":
            log.info("fold %d of %d: %s is finished", number, found.k, run)
            metrics.append(collectives.on_main_rank(partial(_metrics_of, run)))
            continue
        log.info("fold %d of %d: %s", number, found.k, run)
        resumed = state == "resumed"
        try:
            replaces, compared = overwrite and not resumed, strict and resumed
            done = train(one, resume=resumed, overwrite=replaces, strict=compared)
        except Preempted as error:
            raise Preempted(
                f"fold {number} of {found.k}: {error}",
                "the same command with --resume continues it and trains the other folds",
            ) from None
        metrics.append(done.metrics)
    result = TrainedFolds(runs, spreads(metrics), _main_metrics(config), file)
    collectives.on_main_rank(lambda: _write(result, found))
    return result


def _metrics_of(run: Path) -> dict[str, float]:
    """Those of the best checkpoint."""
    return checkpoint.load_latest(run)[1]["metrics"]


def _states(configs: list[Config], file: Path, *, resume: bool, overwrite: bool) -> list[str]:
    """What to do for each fold: "finished", "resumed" or "new". ConfigError, before anything is
    trained, if the runs are there and are not to be resumed or overwritten, or are others."""
    if file.exists() and not _is_ours(file):
        raise ConfigError(f"{printable(file)} exists and is not of folds; choose another output=")
    states, problems = [], []
    for config in configs:
        run = Path(str(config.output))
        again = directory.find_restarted(config.output, config.name) is not None
        saved = any((run / "checkpoints").glob("*.pt"))
        state = directory.read_status(run).get("state")
        if not (resume or again) or not saved:
            states.append("new")
            if saved and not overwrite:
                problems.append(
                    f"output: {run} already holds a run; continue all folds with --resume, replace "
                    "them with --overwrite, or choose another output="
                )
            continue
        states.append("finished" if state == "finished" else "resumed")
        before, now = read_yaml(run / "config.yaml")[0], config.to_dict()
        if _files_of(before) != _files_of(now) or _labels_differ(run, config):
            problems.append(
                f"output: {run} was trained on other data than this fold has now; replace all "
                "folds with --overwrite, or choose another output="
            )
        old, new = flattened(before.get("train") or {}), flattened(now["train"])
        if other := [key for key, value in new.items() if old.get(key, value) != value]:
            keys = listed([f"train.{key}" for key in other], 5)
            log.warning("%s: was trained with other settings: %s", run, keys)
    if problems:
        raise ConfigError(*problems)
    return states


def _files_of(config: Mapping[str, Any]) -> set[Path]:
    """The annotation files of a config in the long form, without links. No class is imported."""
    sources = [source for source in config["data"].values() if isinstance(source, dict)]
    specs = [source.get(split) or {} for source in sources for split in ("train", "val")]
    return {Path(spec["annotations"]).resolve() for spec in specs if "annotations" in spec}


def _labels_differ(run: Path, config: Config) -> bool:
    """Whether the labels that a run used, by its data.json, are others than the config's."""
    used = directory.read_data(run).get("sources", {})
    sources, _ = open_sources(config, SPLITS)
    return any(
        fingerprint(dataset) != before
        for source in sources
        for split, dataset in iter_splits(source)
        if (before := used.get(source.name, {}).get(split, {}).get("fingerprint"))
    )


def _is_ours(file: Path) -> bool:
    try:
        with files.open_regular(file) as opened:
            return {"folds", "runs", "metrics"} <= json.load(opened).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _main_metrics(config: Config) -> list[str]:
    source = next(iter(config.data.values()))
    return [f"{head}/{main_metric(config, head)}" for head in source.feeds]


def _write(result: TrainedFolds, folds: Folds) -> None:
    record = {
        "version": VERSION,
        "folds": {"folder": str(folds.folder.absolute()), "fingerprint": folds.fingerprint},
        "runs": [str(run) for run in result.runs],
        "main": result.main,
        "metrics": {name: one.record() for name, one in result.metrics.items()},
        "note": NOTE,
    }
    files.write_text(result.file, files.to_json(record) + "\n")
