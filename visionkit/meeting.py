"""How the processes of one attempt find each other, and not what an earlier attempt left."""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

from visionkit import launch
from visionkit.errors import ConfigError


def meet() -> dist.PrefixStore:
    """A store for the processes that are alive now.

    With --max-restarts torchrun keeps its store, in which the addresses of dead processes remain,
    and on several machines its count of restarts may differ from one to another. So process 0
    makes up a name for this attempt and tells it to those that call with a new word each.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=launch.timeout()))
    if rank == 0:
        return dist.PrefixStore(_welcome(store, world_size), store)
    word = uuid.uuid4().hex
    store.set(f"visionkit/hello/{rank}", word)
    name = store.get(f"visionkit/welcome/{word}").decode()
    store.set(f"{name}/here/{rank}", "")
    return dist.PrefixStore(name, store)


def _welcome(store: dist.Store, world_size: int) -> str:
    """Answer all others, also one whose word of an earlier attempt was found first."""
    name = f"visionkit/{uuid.uuid4().hex}"
    missing = set(range(1, world_size))
    answered: dict[int, bytes] = {}
    until = time.monotonic() + launch.timeout().total_seconds()
    while missing:
        for rank in sorted(missing):
            key = f"visionkit/hello/{rank}"
            if store.check([key]) and (word := store.get(key)) != answered.get(rank):
                store.set(f"visionkit/welcome/{word.decode()}", name)
                answered[rank] = word
        missing = {rank for rank in missing if not store.check([f"{name}/here/{rank}"])}
        if missing and time.monotonic() > until:
            who = ", ".join(map(str, sorted(missing)))
            raise ConfigError(
                f"process {who} of {world_size} did not come within "
                f"{launch.timeout().total_seconds():.0f} seconds; start as many as WORLD_SIZE says"
            )
        time.sleep(0.01)
    return name
