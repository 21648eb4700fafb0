"""Images as they come out of decoding, kept on disk for later passes, runs and other processes.

An entry is a file of 64-bit words: their sum, whose entry it is, sizes, pixels. Each reading sums
them up, so damage is noticed; that takes a small part of the time of a CRC.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import PIL
import torch
import torchvision
from torch import Tensor

from visionkit.data.image_io import MAX_PIXELS, ResizedImage, load_image
from visionkit.data.loading.cache import ABANDONED, cache_folder, remove, touch
from visionkit.data.sample import resized
from visionkit.data.transforms import ImageSize, fit

# --- The disk space that entries of many processes may take together: FOLDER/<group>/<entry>.

BLOCK = 4096  # bytes, in which files take up a disk


class Room:
    """A limit in bytes. When it is reached, entries of groups that were not used since `open` go,
    the least recently used group first; the time of a group is its folder's.

    What is taken is counted for all processes alike by the length of a file, one byte for each
    block: appending is atomic, so it takes no lock. It is counted again by `open` and at each
    removal. All raise OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit // BLOCK
        self._ledger, self._began = folder / ".blocks", -math.inf

    def open(self) -> None:
        """Make the folder, and remove what is beyond the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._trim(self.limit, before=math.inf)
        os.utime(self._ledger)
        self._began = self._ledger.stat().st_mtime  # by the clock of the file system

    def take(self, size: int) -> bool:
        """Whether there is room for that many bytes; then they count as taken."""
        blocks = -(-size // BLOCK)
        if self._append(blocks):
            return True
        self._trim(self.limit - self.limit // 16 - blocks, before=self._began)
        return self._append(blocks)

    def _append(self, blocks: int) -> bool:
        with open(self._ledger, "ab", buffering=0) as ledger:
            ledger.write(bytes(blocks))
            return ledger.tell() <= self.limit

    def _trim(self, goal: int, before: float) -> None:
        """Count, and remove entries last used before that time until at most `goal` blocks stay."""
        found: list[tuple[float, str, int]] = []
        for group in filter(Path.is_dir, self.folder.iterdir()):
            with suppress(FileNotFoundError):  # another process removed it
                used = group.stat().st_mtime
                found += [(used, entry, blocks) for entry, blocks in _entries(group)]
        total = sum(blocks for _, _, blocks in found)
        for used, entry, blocks in sorted(found) if total > goal else ():
            if total > goal and used < before:
                remove(Path(entry))
                os.utime(os.path.dirname(entry), (used, used))  # to be removed is not to be used
                total -= blocks
        with open(self._ledger, "ab", buffering=0) as ledger:
            ledger.truncate(total)


def _entries(group: Path) -> list[tuple[str, int]]:
    """The paths of entries and their blocks; what a dead process left unfinished is removed."""
    found = []
    for entry in os.scandir(group):
        with suppress(FileNotFoundError):
            status = entry.stat()
            if not entry.name.startswith("."):
                found.append((entry.path, -(-status.st_size // BLOCK)))
            elif status.st_mtime < time.time() - ABANDONED:
                remove(Path(entry.path))
    return found


log = logging.getLogger("visionkit")

FORMAT = 1  # to be raised with each change of what is stored, or of what decoding or `fit` gives

_MADE_BY = (
    *(FORMAT, PIL.__version__, torch.__version__, torchvision.__version__),
    torch.backends.cpu.get_cpu_capability(),  # resizing rounds differently without AVX2
)
_HEADER = 9  # words: sum, 4 of the stamp, h and w of the whole image, h and w of the pixels


class ImageCache:
    """`load` gives what `load_image` gives, from the cache folder where it is kept there.

    limit_gb: of 2^30 bytes; what all entries in the cache folder may take. When it is full, data
        that no run has used since this one began make room. After that nothing more is kept, and
        nothing thrown out: images come round in passes, so that to throw out the oldest would
        throw out each one just before it is needed.

    Loader workers share whether to go on keeping. A folder that cannot be written is warned of.
    """

    def __init__(self, limit_gb: float) -> None:
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()  # full or failed?, damaged
        self._touched: set[Path] = set()
        self._room: Room | None = None
        try:
            self._room = Room(cache_folder() / "images", int(limit_gb * 2**30))
            self._room.open()
        except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
            self._warn(error)

    def load(
        self,
        path: str | Path,
        *,
        exif: Literal["apply", "ignore"] = "apply",
        image_size: ImageSize | None = None,
    ) -> Tensor | ResizedImage:
        """The image as from `load_image`; with `image_size`, fitted to that. DataError as there.

        A file that was changed is read again, unless size and time of change are what they were.
        """
        with suppress(OSError):  # no such file, which `load_image` tells
            if self._room is not None:
                return self._load(self._room, path, exif, image_size, os.stat(path))
        return load_image(path, exif=exif)

    def _load(
        self,
        room: Room,
        path: str | Path,
        exif: Literal["apply", "ignore"],
        image_size: ImageSize | None,
        before: os.stat_result,
    ) -> Tensor | ResizedImage:
        folder, name = os.path.split(os.path.abspath(path))
        group = repr((_MADE_BY, folder, exif, image_size))
        stamp = _digest(repr((group, name, before.st_size, before.st_mtime_ns)))
        entry = room.folder / _digest(group).hex() / _digest(name).hex()
        if (found := self._find(entry, stamp)) is not None:
            return found
        image: Tensor | ResizedImage = load_image(path, exif=exif)
        shape = tuple(image.shape)
        if image_size is not None and (size := fit(shape[1:], image_size)) != shape[1:]:
            image = ResizedImage(resized(image, size), shape)
        after = os.stat(path)
        changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        if not changed and not self._state[0]:
            self._keep(room, entry, _pack(stamp, image))
        return image

    def _find(self, entry: Path, stamp: bytes) -> Tensor | ResizedImage | None:
        """The image in that file; None if there is none, or that of another state."""
        try:
            words = _read(entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self._state[1] += 1
            count = int(self._state[1])
            if str(count).rstrip("0") == "1":  # 1, 10, 100, ...
                log.warning("%s: %s, made again (%d so far)", entry, error, count)
            remove(entry)
            return None
        if words[1:5].numpy().tobytes() != stamp:
            return None
        if entry.parent not in self._touched:
            self._touched.add(entry.parent)
            touch(entry.parent)
        return _unpack(words)

    def _keep(self, room: Room, entry: Path, words: Tensor) -> None:
        try:
            if room.take(words.nbytes):
                _write(entry, words)
            else:
                self._state[0] = 1
                log.info("%s is full: the other images are decoded each time", room.folder)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._state[0]:
            log.warning(
                "images cannot be kept in the cache, so they are decoded each time [%s]; "
                "VISIONKIT_CACHE names another folder",
                error,
            )
        self._state[0] = 1


def _pack(stamp: bytes, image: Tensor | ResizedImage) -> Tensor:
    """An entry, (n,) int64."""
    pixels = image.pixels if isinstance(image, ResizedImage) else image
    words = torch.zeros(_HEADER + -(-pixels.nbytes // 8), dtype=torch.int64)
    words[1:5] = torch.frombuffer(bytearray(stamp), dtype=torch.int64)
    words[5:_HEADER] = torch.tensor([*image.shape[1:], *pixels.shape[1:]])
    _pixels(words).copy_(pixels)
    words[0] = words[1:].sum()
    return words


def _unpack(words: Tensor) -> Tensor | ResizedImage:
    pixels, full = _pixels(words), tuple(words[5:7].tolist())
    return pixels if full == pixels.shape[1:] else ResizedImage(pixels, (3, *full))


def _pixels(words: Tensor) -> Tensor:
    """(3, h, w) uint8, channels last in memory: a view."""
    h, w = words[7:_HEADER].tolist()
    return words[_HEADER:].view(torch.uint8)[: h * w * 3].view(h, w, 3).permute(2, 0, 1)


def _read(entry: Path) -> Tensor:
    """The words of an entry. ValueError if their sum is another."""
    with open(entry, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size % 8 or not _HEADER * 8 < size <= _HEADER * 8 + 3 * MAX_PIXELS + 8:
            raise ValueError("no whole image")
        words = torch.empty(size // 8, dtype=torch.int64)
        if file.readinto(words.numpy()) != size or words[1:].sum() != words[0]:
            raise ValueError("damaged")
    return words


def _write(entry: Path, words: Tensor) -> None:
    """The file appears whole or not at all."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=entry.parent, prefix=".")
    try:
        with open(handle, "wb") as file:
            file.write(words.numpy())
        os.replace(name, entry)
    except OSError:
        remove(Path(name))
        raise


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=32).digest()
