"""Damage small datasets: reading them must end with records or a `DataError`, nothing else."""

import random
import shutil

from visionkit.data.formats.convert import read_index_of
from visionkit.data.formats.detect import open_reader
from visionkit.errors import DataError

TOKENS = [
    *(b"nan", b"inf", b"-1", b"1e999", b"0", b"99999999999999999999", b"2147483648", b"0.5"),
    *(b"", b" ", b"\n", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\xf0\x9f\x98\x80"),
    *(b"../../../etc/passwd", b"/", b"\\", b"C:\\", b"<", b">", b"&amp;", b"'", b'"', b"{", b"}"),
    *(b"[", b"]", b":", b",", b";", b"- ", b"null", b"true", b"*a", b"&a ", b"!!python/object:os"),
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes: of bits, tokens, lines, or its length."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(7)
        if kind == 0 and content:
            place = min(place, len(content) - 1)
            changed = content[place] ^ 1 << rng.randrange(8)
            content = content[:place] + bytes([changed]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place] + rng.choice(TOKENS) + content[place:]
        elif kind == 2:
            content = content[:place]
        elif kind == 3:
            content = content[:place] + content[place + rng.randint(1, 20) :]
        elif kind == 4:
            lines = content.splitlines(keepends=True)
            rng.shuffle(lines)
            content = b"".join(lines)
        elif kind == 5:
            end = place + rng.randint(1, 30)
            content = content[:end] + content[place:]
        else:
            parts = content.split(b" ")
            parts[rng.randrange(len(parts))] = rng.choice(TOKENS)
            content = b" ".join(parts)
    return content


def fuzz(root, format: str, count: int, *, seed: int = 0, source: str = ".", **options):
    """Read `count` damaged copies of the dataset in `root`, each with one file damaged, removed or
    renamed. Returns how many could be read. `source` is what to open below the copy."""
    rng, work, sound = random.Random(seed), root.parent / f"{root.name}-damaged", 0
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    for _ in range(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root, work)
        name = rng.choice(files)
        choice = rng.random()
        if choice < 0.9:
            (work / name).write_bytes(damaged((root / name).read_bytes(), rng))
        elif choice < 0.95:
            (work / name).unlink()
        else:
            (work / name).rename((work / name).with_name(rng.choice(files).name))
        try:
            reader = open_reader(format, work / source, skip_bad=rng.random() < 0.3, **options)
            read_index_of(reader)
            sound += 1
        except DataError:
            pass
    return sound
