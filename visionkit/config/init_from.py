"""`init_from: RUN`: a config that adds to a trained model reuses the other parts of that run."""

from __future__ import annotations

from typing import Any

from visionkit.config.components import refuse_plugins
from visionkit.config.schema import ConfigProblems
from visionkit.errors import CheckpointError, VisionkitError
from visionkit.runs import checkpoint


def with_origin(
    long: dict[str, Any], problems: ConfigProblems, *, allow_plugins: bool
) -> dict[str, Any]:
    """The long form with backbone, neck and heads of the run, where it has none of that name.

    The datasets that validated the heads are reused, those that trained them are not. `init_from`
    becomes a mapping of the `run` and the reused `heads`; a config in which it is a mapping is
    complete. The run is not trusted: see `components.refuse_plugins`.
    """
    run = long.get("init_from")
    if not isinstance(run, str):
        return long
    try:
        path, state = checkpoint.load_latest(run)
        old = state["config"]
        if not _is_long(old):
            raise CheckpointError(f"{path}: its config was not saved by visionkit")
        refuse_plugins(old, path, allowed=allow_plugins)
    except VisionkitError as error:
        problems.add(("init_from",), str(error))
        problems.raise_found()  # other problems may only follow from it
    grown = dict(long)
    for part in ("backbone", "neck"):
        given = long.get(part)
        if given is not None and not _agrees(given, old[part]):
            problems.add((part,), f"differs from that of {run}, which is {old[part]}; remove it")
        grown[part] = old[part]
    heads = grown.get("heads")
    if not isinstance(heads, dict):
        return grown
    taken = [name for name in old["heads"] if name not in heads]
    grown["heads"] = {**{name: old["heads"][name] for name in taken}, **heads}
    if isinstance(long.get("data"), dict):
        grown["data"] = {**long["data"], **_validation_of(taken, old["data"], long["data"])}
    grown["init_from"] = {"run": run, "heads": taken}
    return grown


def _is_long(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config has the long form in which visionkit saves it."""
    heads, data = config.get("heads"), config.get("data")
    if not isinstance(heads, dict) or not isinstance(data, dict):
        return False
    sources = [source for name, source in data.items() if name != "workers"]
    fed = all(isinstance(s, dict) and isinstance(s.get("feeds"), list) for s in sources)
    return fed and {"backbone", "neck"} <= config.keys()


def _agrees(given: Any, old: Any) -> bool:
    """Whether all given values are those of before."""
    if not isinstance(given, dict) or not isinstance(old, dict):
        return given == old
    return all(old.get(key) == value for key, value in given.items())


def _validation_of(
    heads: list[str], old: dict[str, Any], given: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, source in old.items():
        feeds = [head for head in source["feeds"] if head in heads] if name != "workers" else []
        if feeds:
            free = name if name not in given else f"{name}_before"
            found[free] = {**source, "feeds": feeds, "train": None, "images_per_identity": None}
    return found
