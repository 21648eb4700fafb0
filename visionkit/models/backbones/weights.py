"""Read or download pretrained classifier weights for a backbone, and report what does not fit."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from visionkit.errors import CheckpointError, listed
from visionkit.runs.checkpoint import load_tensors

log = logging.getLogger("visionkit")

RELATED = 0.5  # share of tensors that must fit; 0.3 of ResNet-18's file fit ResNet-50 by chance
COUNTER = "num_batches_tracked"  # of a BatchNorm; not needed, and not in every file


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a state_dict file, on the CPU. CheckpointError for any other content."""
    content = load_tensors(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"weights: {path!r} has a {type(content).__name__}, not a state_dict")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"weights: {path!r} is not a state_dict: no tensors under {listed(others)}; "
            "save the state_dict alone with torch.save"
        )
    return {_modern(key): value for key, value in content.items()}


def download(arch: str) -> dict[str, Tensor]:
    """torchvision's best ImageNet weights of that architecture, from torch's cache or the network.

    The name of the file has the beginning of its SHA-256, which is always compared. An incomplete
    or different download is deleted.
    """
    url = get_model_weights(arch).DEFAULT.url
    name = Path(urlsplit(url).path).name
    checksum = name.rpartition("-")[2].partition(".")[0]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not file.is_file():
            log.info("downloading %s to %s", url, file)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), checksum, progress=False)
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # no network, no disk, or a wrong checksum
        raise CheckpointError(
            f"weights: 'default' of {arch} could not be downloaded from {url}: {error}; fetch "
            "that file elsewhere and give its path, or set weights: null for random ones"
        ) from error
    if not found.startswith(checksum):
        raise CheckpointError(
            f"weights: 'default' of {arch}: {file} is damaged (its SHA-256 begins with "
            f"{found[: len(checksum)]}, expected {checksum}); delete it to download it again"
        )
    return {_modern(key): value for key, value in load_tensors(file).items()}


def fit(
    body: nn.Module,
    tensors: dict[str, Tensor],
    *,
    origin: str,
    file_key: Callable[[str], str],
    ignored: Iterable[str] = (),
) -> None:
    """Copy every tensor that fits into `body`; warn about the others.

    `file_key` returns a parameter's name in the file; `ignored` are names in the file that the
    backbone does not have, such as the classifier. CheckpointError if less than half of the
    backbone is in the file, or a tensor has another shape.
    """
    own = {
        file_key(key): (key, tensor)
        for key, tensor in body.state_dict().items()
        if not key.endswith(COUNTER)
    }
    known = own.keys() | set(ignored)
    shared = [key for key in own if key in tensors]
    fitting = [key for key in shared if tensors[key].shape == own[key][1].shape]
    misfits = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in known and not key.endswith(COUNTER)],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key][1].shape)}"
            for key in shared
            if key not in fitting
        ],
    }
    report = "; ".join(
        [
            f"weights {origin!r}: {len(fitting)} of {len(own)} tensors fit this backbone",
            *(f"{len(keys)} {what}: {listed(keys)}" for what, keys in misfits.items() if keys),
        ]
    )
    if len(fitting) < RELATED * len(own) or misfits["of another shape"]:
        raise CheckpointError(f"{report}; give the file of the same architecture and variant")
    if any(misfits.values()):
        log.warning("%s", report)
    body.load_state_dict({own[key][0]: tensors[key] for key in fitting}, strict=False)


def _modern(key: str) -> str:
    """torchvision's DenseNet files have the old name `norm.1` of the model's `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
