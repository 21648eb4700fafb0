"""Errors of torch and of the system that have a known remedy, told with it. Those of loader workers
are told by `data.workers`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from visionkit.config import Config
from visionkit.errors import ConfigError, ResourceError, VisionkitError


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Raises what is known as an error that says what to do, anything else as it is."""
    try:
        yield
    except VisionkitError:
        raise
    except Exception as error:
        known = _explained(error, config)
        if known is None:
            raise
        raise known from error


def is_out_of_memory(error: Exception) -> bool:
    """Of the GPU's memory or of the machine's."""
    lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return lacking or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _explained(error: Exception, config: Config) -> VisionkitError | None:
    text = str(error)
    first_line = text.strip().partition("\n")[0][:200] or type(error).__name__
    if is_out_of_memory(error):
        sizes = ", ".join(
            f"data.{name}: batch_size {spec.batch_size}, image_size {spec.image_size}"
            for name, spec in config.data.items()
            if spec.train is not None
        )
        return ResourceError(
            f"out of memory with {sizes}. Use a smaller batch_size (as many times "
            "train.accumulate keeps the pictures per step), a smaller image_size or "
            f"train.precision=bf16. {first_line}"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or (
        "Too many open files" in text
    ):
        return ResourceError(
            f"too many open files; raise the limit with `ulimit -n 4096`, or set fewer "
            f"data.workers ({config.workers} now). {first_line}"
        )
    if "Expected more than 1 value per channel when training" in text:
        return ConfigError(
            "batch_size: batch normalization was given a single value for a channel, which has no "
            "variance; use a larger batch_size (2 for each process at least) or image_size, or a "
            f"backbone with norm: frozen or group. {first_line}"
        )
    return None
