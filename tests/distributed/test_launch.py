"""What torchrun's environment says, and how ranks connect."""

import contextlib
import os
import socket
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from support.ranks import on_ranks
from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.data.loading.samplers import InfiniteBatchSampler
from visionkit.distributed import collectives, launch
from visionkit.engine.setup import build_training
from visionkit.errors import ConfigError
from visionkit.runs import directory as rundir

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}


@pytest.fixture
def environment(monkeypatch):
    def put(**variables):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set.*torchrun"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: got 'two' in the environment; expected an integer"),
        ({**WHOLE, "MASTER_PORT": "1", "RANK": "2"}, "RANK is 2 of WORLD_SIZE 2"),
        ({**WHOLE, "MASTER_PORT": "x"}, "MASTER_PORT: got 'x'"),
        ({**WHOLE, "MASTER_PORT": "0"}, "MASTER_PORT: got 0 in the environment; expected 1 to 655"),
        ({**WHOLE, "MASTER_PORT": "99999"}, "MASTER_PORT: got 99999 .* expected 1 to 65535"),
        ({**WHOLE, "MASTER_PORT": "9" * 5000}, "MASTER_PORT: got '9+' in the environment"),
        ({**WHOLE, "MASTER_PORT": "1", "VISIONKIT_TIMEOUT": "0"}, "VISIONKIT_TIMEOUT: got 0"),
        ({**WHOLE, "MASTER_PORT": "1", "VISIONKIT_TIMEOUT": "9999999999"}, "at most 2592000"),
    ],
)
def test_an_incomplete_environment_is_told(environment, variables, text):
    environment(**variables)
    with pytest.raises(ConfigError, match=text):
        collectives.setup()


def test_more_processes_than_gpus_are_told(environment, monkeypatch):
    environment(**{**WHOLE, "MASTER_PORT": "1", "LOCAL_RANK": "2"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="LOCAL_RANK is 2, but this machine has 2 visible GPUs"):
        collectives.setup()


def test_an_address_in_use_is_told(environment):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        environment(**WHOLE, MASTER_PORT=str(taken.getsockname()[1]), VISIONKIT_TIMEOUT="2")
        with pytest.raises(ConfigError, match=r"in use by another program.*--standalone"):
            collectives.setup()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n" * 100], ids=["silent", "talks"])
def test_a_rank_that_meets_another_program_does_not_hang(environment, answer):
    """torch's own client waits without a time limit for the answer of a program that is silent."""
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    kept.append(other.accept()[0])
                    kept[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        port = str(other.getsockname()[1])
        environment(**{**WHOLE, "RANK": "1", "MASTER_PORT": port, "VISIONKIT_TIMEOUT": "1"})
        start = time.monotonic()
        with pytest.raises(
            ConfigError, match=r"rank 1 of 2 cannot connect .*choose another --mast"
        ):
            collectives.setup()
        assert time.monotonic() - start < 20
        for connection in kept:
            connection.close()


def test_a_process_that_never_comes_is_told(environment):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment(**WHOLE, MASTER_PORT=str(port), VISIONKIT_TIMEOUT="1")
    with pytest.raises(ConfigError, match="rank 0 of 2 cannot connect to the others"):
        collectives.setup()


def test_ranks_connect_though_the_store_has_tokens_of_dead_ones(monkeypatch):
    """Torchrun keeps one store for all attempts."""
    store, found = dist.HashStore(), {}
    store.set("visionkit/token/1", "the token of a rank that died")
    rank = threading.local()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, rank.value, 2)]))

    def come(number):
        rank.value = number
        found[number] = collectives.connect()

    for _ in range(2):  # the second attempt finds what the first left
        first = threading.Thread(target=come, args=(0,))
        first.start()
        first.join(0.2)
        assert first.is_alive()  # it is not content with the dead one
        come(1)
        first.join(5)
        found[0].set("key", "value")
        assert found[1].get("key") == b"value"
        assert not store.check(["key"])
        found.clear()


def test_the_run_of_an_earlier_attempt_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rundir.find_restarted(None, "name") is None  # without torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch")
    run = rundir.choose(None, "name", resume=False, overwrite=False)
    rundir.write_status(run, "running")
    assert rundir.find_restarted(None, "name") is None  # it is of this process: no earlier attempt
    monkeypatch.setattr(rundir.os, "getpid", lambda: 1)
    assert rundir.find_restarted(None, "name") == run
    assert rundir.find_restarted(str(run), "name") == run
    assert rundir.find_restarted("elsewhere", "name") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert rundir.find_restarted(None, "name") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default: no id
    assert launch.launch_id() == f"{socket.gethostname()}:{os.getppid()}"


def averages():
    """Of gradients that one process, both or none of them has, and of a tensor."""
    collectives.setup()
    rank = collectives.rank()
    both, one, none = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    both.grad = torch.full((2,), float(rank))
    one.grad = torch.full((2,), 4.0) if rank == 0 else None
    other = torch.tensor([float(rank)])
    collectives.sync_gradients([both, one, none], [other])
    return [both.grad, one.grad, none.grad is None, other]


def test_gradients_are_averaged_and_what_no_loss_reaches_keeps_none(tmp_path):
    """As in a single process, where weight decay leaves such a parameter alone."""
    for both, one, kept, other in on_ranks(2, averages, folder=tmp_path):
        assert both.tolist() == [0.5, 0.5] and one.tolist() == [2.0, 2.0] and kept
        assert other.tolist() == [0.5]


@pytest.mark.parametrize("ratios", [None, np.random.default_rng(0).random(10)])
def test_the_shares_of_all_processes_are_the_batch_of_one(ratios, monkeypatch):
    """Each pass of 10 images shows every one once, whatever the number of processes."""

    def batches(rank, world):
        monkeypatch.setattr(collectives, "rank", lambda: rank)
        monkeypatch.setattr(collectives, "world_size", lambda: world)
        stream = iter(InfiniteBatchSampler(10, batch_size=6, seed=0, ratios=ratios))
        return [next(stream) for _ in range(40)]  # four passes and five pools of eight batches

    whole = batches(0, 1)
    for world in (2, 3):
        shares = [batches(rank, world) for rank in range(world)]
        assert all(len(batch) == 6 // world for share in shares for batch in share)
        for number, batch in enumerate(whole):
            together = [ticket for share in shares for ticket in share[number]]
            assert sorted(together) == sorted(batch)
    seen = sorted((position, index) for batch in whole for index, position in batch)
    for first in range(0, 240, 10):
        assert sorted(index for _, index in seen[first : first + 10]) == list(range(10))
    assert [index for _, index in seen[:10]] != [index for _, index in seen[10:20]]


def test_a_batch_that_cannot_be_shared_is_told(monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match="batch_size: 6 images cannot be split evenly"):
        build_training(load_config(SMALL_RUNS["classification"]), device=torch.device("cpu"))
