"""Small files that would become huge are refused before any memory is taken."""

import gzip
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from support.damaged import PNG, chunk, png, tiff
from visionkit.data.datasets import idx as module
from visionkit.data.datasets.idx import Idx
from visionkit.errors import DataError

FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x01\x00\x00;"
GIF = b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + FRAME
ZIPPED = b"a\0\0" + zlib.compress(bytes(10**8))
BMP = b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 50_000, 50_000, 1, 24, *[0] * 6)

BOMBS = {
    "20000.png": png(20_000, 20_000, b""),
    "60000.png": png(60_000, 60_000, b""),
    "largest.png": png(2**31 - 1, 2**31 - 1, b""),
    "rows.png": png(100, 100, bytes(300_000_000)),  # many more than the header says
    "chunk.png": PNG + struct.pack(">I", 2**31 - 1) + b"IDAT" + b"\0" * 50,
    "text.png": png(1, 1, bytes(4), before=chunk(b"zTXt", ZIPPED)),
    "profile.png": png(1, 1, bytes(4), before=chunk(b"iCCP", ZIPPED)),
    "wide.tif": tiff(60_000, 60_000, 100),
    "strip.tif": tiff(100, 100, 2**32 - 1),
    "wide.gif": GIF,
    "wide.bmp": BMP,
    "drawing.jpg": b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
}

# Prints what became of each file; a megabyte of what is asked for beyond that is an error.
CHECK = """
import resource, sys
from pathlib import Path
from visionkit.data.image_io import read_image
from visionkit.data.checks.images import inspect_images
from visionkit.errors import DataError

read_image(sys.argv[2])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[3]) << 20),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    (info,) = inspect_images([path])
    try:
        read_image(path)
        print(path.name, "loaded", info.kind or "sound", sep="|")
    except DataError as error:
        print(path.name, error, info.kind, sep="|")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_bombs_are_refused_in_little_memory(tmp_path):
    (tmp_path / "bombs").mkdir()
    for name, content in BOMBS.items():
        (tmp_path / "bombs" / name).write_bytes(content)
    (tmp_path / "good.png").write_bytes(png(1, 1, bytes(4)))
    words = [str(tmp_path / "bombs"), str(tmp_path / "good.png"), "300"]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}
    assert found.keys() == BOMBS.keys()
    for name in ("20000.png", "60000.png", "largest.png", "wide.tif", "wide.gif", "wide.bmp"):
        assert "has more than" in found[name][0] and found[name][1] == "too-large"
    for name in ("chunk.png", "text.png", "profile.png", "strip.tif"):
        assert "is damaged" in found[name][0] and found[name][1] == "damaged"
    assert "XML" in found["drawing.jpg"][0]
    assert found["rows.png"] == ["loaded", "sound"]  # what is too much is not unpacked


def idx(folder, shape, data, name="i.gz"):
    head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    with gzip.open(folder / name, "wb") as file:
        file.write(head + data)
    return str(folder / name)


def test_a_gzip_file_that_says_it_holds_far_more_is_a_bomb(tmp_path, monkeypatch):
    zeros = bytes(1_000_000)
    assert len(Idx(idx(tmp_path, (100, 100, 100), zeros))) == 100  # too small to do harm
    monkeypatch.setattr(module, "_SMALL", 999_999)
    with pytest.raises(DataError, match=r"i.gz of \d+ bytes claims to hold 1000000: too many"):
        Idx(idx(tmp_path, (100, 100, 100), zeros))
    noise = np.random.default_rng(0).bytes(1_000_000)
    assert len(Idx(idx(tmp_path, (100, 100, 100), noise))) == 100
    with pytest.raises(DataError, match="expected 100 bytes"):
        Idx(idx(tmp_path, (1, 10, 10), zeros))
