"""Loader workers that die, hang or fail: the image is named, in time, and no process is left."""

import ctypes
import json
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from visionkit.cli.main import main
from visionkit.data.loading import workers as loading
from visionkit.data.loading.source import Source
from visionkit.data.sample import Sample
from visionkit.errors import DataError, ResourceError
from visionkit.types import Classes


class Images:
    """Ten small images with ids 100, 101, ... At image 5 something happens."""

    keys = ("class_id",)
    classes: ClassVar = {"class_id": Classes(("a", "b"), (0, 1))}
    image_ids: ClassVar = [*range(100, 110)]

    def __init__(self, happens=lambda: None, **sample):
        self.happens, self.sample_of_5 = happens, sample

    def __len__(self):
        return 10

    def image_path(self, index):
        return Path("photos") / f"{index}.jpg"

    def __getitem__(self, index):
        found = {"image": torch.zeros((3, 32, 32), dtype=torch.uint8)}
        if index == 5:
            self.happens()
            found |= self.sample_of_5
        return Sample(**{"image_id": self.image_ids[index], "orig_size": (32, 32), **found})


def source(dataset, transforms=()):
    return Source("main", ["x"], dataset, dataset, 4, 32, transforms)


def error_of(dataset, *, workers, transforms=()):
    """The error of loading all images."""
    batches = source(dataset, transforms).train_batches(seed=0, start=0, workers=workers)
    with pytest.raises((DataError, ResourceError)) as caught, closing(batches):
        for _ in range(3):
            next(batches)
    assert multiprocessing.active_children() == []
    return caught.value


# --- workers that are gone ---


def hang_in_native_code():
    ctypes.PyDLL(None).sleep(100)  # no handler of Python's can run meanwhile


def kill_with(number):
    return lambda: os.kill(os.getpid(), number)


DEATHS = {
    "SIGKILL": (kill_with(signal.SIGKILL), r"was killed \(SIGKILL\).*ran out of memory"),
    "SIGSEGV": (kill_with(signal.SIGSEGV), r"ended by SIGSEGV, which native code raises"),
    "SIGBUS": (kill_with(signal.SIGBUS), r"bus error.*/dev/shm.*--shm-size"),
    "exit": (lambda: os._exit(7), r"exited with code 7"),
    "hang": (hang_in_native_code, r"made no progress for 2 s"),
}
PLACE = r"data\.main\.val: a loader worker at image 5 \(photos/5\.jpg, id 105\): "


def test_a_worker_that_dies_or_hangs_is_an_error_that_names_the_image(monkeypatch):
    """Within the time that one image may take and the 5 s after which torch looks."""
    monkeypatch.setattr(loading, "HANG_SECONDS", 2)

    def end_of(death):
        since = time.perf_counter()
        with pytest.raises(DataError) as caught:
            list(source(Images(death)).val_batches(workers=2))
        return str(caught.value), time.perf_counter() - since

    with ThreadPoolExecutor(len(DEATHS)) as pool:  # each waits for most of the time
        ends = pool.map(end_of, [death for death, _ in DEATHS.values()])
    for (name, (_, what)), (text, seconds) in zip(DEATHS.items(), ends, strict=True):
        assert re.match(PLACE + what, text), (name, text)
        assert seconds < 60, name  # 5 to 8 on an idle machine
    assert multiprocessing.active_children() == []


def test_a_death_interrupts_nothing_but_waiting_for_the_next_batch():
    before = signal.getsignal(signal.SIGCHLD)
    with closing(source(Images()).train_batches(seed=0, start=0, workers=1)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        sum(range(1000))  # where torch's own handler would raise
        assert signal.getsignal(signal.SIGCHLD) == before
        with pytest.raises(DataError, match=r"(at|after) image \d .*was killed \(SIGKILL\)"):
            list(batches)


def test_a_worker_that_waits_is_not_taken_to_hang(monkeypatch):
    monkeypatch.setattr(loading, "HANG_SECONDS", 1)
    with closing(source(Images()).train_batches(seed=0, start=0, workers=1)) as batches:
        next(batches)
        time.sleep(1.5)  # a long validation
        for _ in range(4):
            next(batches)


# --- what custom datasets and transforms may do ---


class Odd(DataError):
    """An error that another process cannot be given."""

    def __init__(self, what, lock):
        super().__init__(what)
        self.lock = lock


class Transform:
    resizes = False

    def __call__(self, sample, rng, size):
        if sample.image_id == 105:
            raise IndexError("out of range")
        return sample


class Crash:
    """A transform that ends its process, a loader worker."""

    def __call__(self, sample, rng, size):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sample


def fail():
    raise KeyError("no such label")


def fail_oddly():
    raise Odd("an odd fault", threading.Lock())


NAME = r"^image 5 \(photos/5\.jpg, id 105\): "


@pytest.mark.parametrize("workers", [0, 1])
class TestFaultsOfOthers:
    def test_an_exception_of_a_dataset(self, workers):
        error = error_of(Images(fail), workers=workers)
        assert re.match(NAME + "reading it: KeyError: 'no such label'$", str(error))
        assert "in fail" in error.__notes__[0]  # where, for --debug

    def test_an_exception_of_a_transform(self, workers):
        error = error_of(Images(), workers=workers, transforms=[Transform()])
        assert re.match(NAME + "Transform: IndexError: out of range$", str(error))

    def test_pixels_that_are_not_bytes_are_refused_instead_of_being_cut_to_zeros(self, workers):
        error = error_of(Images(image=torch.rand(3, 32, 32)), workers=workers)
        assert re.match(
            NAME + r".*image: got a tensor float32 \(3, 32, 32\); expected a tensor uint8 \(3, h,",
            str(error),
        )

    def test_an_image_that_no_memory_can_hold(self, workers):
        error = error_of(Images(lambda: np.zeros(2**50)), workers=workers)
        assert re.match(NAME + r"reading it: .*MemoryError: Unable to allocate", str(error))


def test_what_a_worker_cannot_send_is_reported_and_not_waited_for():
    assert re.match(r"an odd fault \(record 5", str(error_of(Images(fail_oddly), workers=1)))
    error = error_of(Images(extra={"lock": threading.Lock()}), workers=1)
    assert re.match(NAME + "its 'lock' is of type lock, which a loader worker cannot", str(error))


def test_a_dataset_that_cannot_be_sent_to_workers_is_reported():
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        error = error_of(Images(lambda: None), workers=1)
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert re.match(
        r"data\.main\.train: loader workers cannot be started: .*data\.workers=0$", str(error)
    )


def test_a_training_run_ends_with_the_code_of_bad_data_and_says_which(tmp_path, capsys):
    from support.runs import read_status, spec

    config = spec("classification", tmp_path / "run", workers=2)
    config["data"]["main"]["transforms"] = [{"type": "test_workers.Crash"}]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.yaml")]) == 3
    said = capsys.readouterr().err
    assert re.search(r"error: data\.main\.train: a loader worker at image \d+ \(.*jpg, id", said)
    assert "Traceback" not in said
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert multiprocessing.active_children() == []


# --- what the system has no more of ---


def use_up_open_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def test_too_many_open_files_in_a_worker():
    """It can neither send this batch nor serve those that it has sent: the first is noticed when
    all sent before are taken, else the second."""
    error = error_of(Images(use_up_open_files), workers=1)
    assert re.search(r"(Too many open files|a batch was lost).*`ulimit -n 65536`", str(error))


SHM = r"\(/dev/shm\) is full, read-only or not there: .*--shm-size=8g.*data\.workers=0"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "unable to open shared memory object </torch_1_2>: Read-only file system (30)"
        ),
        RuntimeError("unable to open shared memory object </torch_1_2>: No such file (2)"),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space (28)"),
        *(OSError(number, "of a semaphore") for number in (2, 13, 28, 30, 38)),
    ],
)
def test_no_shared_memory_at_the_start(monkeypatch, error):
    def fail(_):
        raise error

    before = signal.getsignal(signal.SIGCHLD)
    place = "DataLoader.__iter__" if isinstance(error, OSError) else "WorkerStatus.__init__"
    monkeypatch.setattr(f"visionkit.data.loading.workers.{place}", lambda self, *_: fail(self))
    error = error_of(Images(), workers=2)
    assert isinstance(error, ResourceError)
    assert re.search(rf"loader workers cannot be started: .*{SHM}", str(error))
    assert signal.getsignal(signal.SIGCHLD) is before


def test_workers_that_have_started_are_ended_without_torch_raising_for_them(monkeypatch):
    def fail(self):
        started = multiprocessing.Process(target=time.sleep, args=(60,))
        started.start()
        signal.signal(signal.SIGCHLD, lambda *_: 1 / 0)  # as torch does
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("visionkit.data.loading.workers.DataLoader.__iter__", fail)
    assert "ulimit -u" in str(error_of(Images(), workers=2))


def warn():
    raise DeprecationWarning("old")


@pytest.mark.parametrize("workers", [0, 1])
def test_warnings_as_errors_are_not_a_fault_of_the_data(workers):
    error = error_of(Images(warn), workers=workers)
    assert isinstance(error, ResourceError) and "`-W error`" in str(error)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2>: Success (0)", "--shm-size"),
        ("unable to resize file </torch_1_2> to the right size: No space left", "--shm-size"),
        ("unable to allocate shared memory(shm) for file </torch_7>: No space left", "--shm-size"),
        ("killed by signal: Bus error. Workers may be out of shared memory.", "--shm-size"),
        (
            "unable to open shared memory object </torch_1> in mode: Too many open files (24)",
            "ulimit -n",
        ),
        ("received 0 items of ancdata", "ulimit -n"),
        ("[Errno 12] Cannot allocate memory", "ulimit -v"),
    ],
)
def test_hints_for_shortages(text, hint):
    told = loading._resource_hint(
        RuntimeError(f"Caught RuntimeError in worker\nTraceback ...\n{text}")
    )
    assert told.startswith(text) and hint in told
    assert loading._resource_hint(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
