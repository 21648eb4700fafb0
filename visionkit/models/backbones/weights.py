"""Pretrained classifier weights for a backbone, from a file or by name, and what does not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

from visionkit.errors import CheckpointError, install_hint
from visionkit.models.published import fetch, find
from visionkit.runs import download
from visionkit.runs.checkpoint import COUNTER, MOST, compare, load_state_dict, load_tensors
from visionkit.runs.files import means_file
from visionkit.runs.foreign import content_kind

log = logging.getLogger("visionkit")

HINT = (
    "give the file of the same architecture and variant, or set backbone.partial_weights: true to "
    "load the tensors that fit and start the others at random"
)
INSTEAD = "give its path (backbone.weights=PATH), or start at random (backbone.weights: null)"


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a state_dict file, on the CPU. CheckpointError for any other content."""
    try:
        state, _ = load_state_dict(path)
    except CheckpointError as error:
        raise CheckpointError(f"backbone.weights: {error}") from error
    return {_modern(key): value for key, value in state.items()}


def load(arch: str, weights: str) -> dict[str, Tensor]:
    """The tensors that `weights` of torchvision's `arch` means: of a file, or of `default` or other
    published weights, which are fetched. CheckpointError if they are of another architecture."""
    if means_file(weights):
        return read(weights)
    found = find(arch if weights == "default" else weights)
    if found.name != arch:
        hint = "; weights of a whole model go into `weights`" if found.kind == "model" else ""
        raise CheckpointError(
            f"backbone.weights: {found.member} is of {found.name}, and this backbone is "
            f"{arch}{hint}"
        )
    path = fetch(found, instead=INSTEAD)
    return {_modern(key): value for key, value in load_tensors(path).items()}


def packaged(distribution: str, file: str, sha256: str, *, used_by: str) -> dict[str, Tensor]:
    """The tensors of a file that an installed Python package has. No code of the package runs.

    CheckpointError if the package is not installed or its file has another SHA-256.
    """
    what = f"backbone.weights: 'default' of {used_by}"
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(file)))
        found = download.sha256(path)
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"{what} are in the Python package {distribution}, which is not installed; run: "
            f"{install_hint('pretrained')}; or start at random (backbone.weights: null)"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{what}: {error}; install {distribution} again") from error
    if found != sha256:
        raise CheckpointError(
            f"{what}: {path} is damaged or of another version (its SHA-256 is {found}, expected "
            f"{sha256}); install {distribution} again"
        )
    return load_tensors(path)


def fit(
    body: nn.Module,
    tensors: dict[str, Tensor],
    *,
    origin: str,
    file_key: Callable[[str], str],
    ignored: Iterable[str] = (),
    partial: bool = False,
) -> None:
    """Copy the tensors of a file into `body`.

    `file_key` returns a parameter's name in the file; `ignored` are names in the file that the
    backbone does not have, such as the classifier. CheckpointError, with nothing loaded, if a
    tensor of the backbone is not in the file or has another shape, or if the file is of a deeper
    network; with `partial` a warning, unless nothing fits.
    """
    own = {file_key(key): (key, tensor) for key, tensor in body.state_dict().items()}
    known = {key: t for key, t in tensors.items() if key in own or key not in {*ignored}}
    fit = compare({key: tensor for key, (_, tensor) in own.items()}, known)
    total = sum(not key.endswith(COUNTER) for key in own)
    text = f"weights {origin!r}: {len(fit.fitting)} of {total} tensors fit this backbone"
    if not fit.fitting or not (fit.is_whole or partial):
        looks = f"{text}: the file looks like {content_kind(tensors)}"
        raise CheckpointError(looks, *fit.lines(), f"  {HINT}")
    if fit.lines():
        log.warning("%s", "; ".join([text, *map(str.strip, fit.lines(MOST))]))
    body.load_state_dict({own[key][0]: tensors[key] for key in fit.fitting}, strict=False)


def _modern(key: str) -> str:
    """torchvision's DenseNet files have the old name `norm.1` of the model's `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
