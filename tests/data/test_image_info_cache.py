"""The results of image inspection are remembered, and never used where they may be wrong."""

import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from support.damaged import faults_of, flat_png, image
from visionkit.data.checks import images
from visionkit.data.checks.images import ImageInfo, ImageInfoCache, inspect_images


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "image_info"


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    names = [*(f"{i}.png" for i in range(5)), "sub/0.png", "corrupt.png"]
    paths = [tmp_path / "photos" / name for name in names]
    for i, path in enumerate(paths):
        path.write_bytes(flat_png(8 + i, 6, i) if i < 6 else b"corrupt")
    return paths


@pytest.fixture
def inspected(monkeypatch):
    """The names of the images that are inspected."""
    names, inspect_image = [], images.inspect_image

    def counting(path):
        names.append(path.name)
        return inspect_image(path)

    monkeypatch.setattr(images, "inspect_image", counting)
    return names


def test_only_new_changed_and_corrupt_images_are_inspected_again(photos, inspected, tmp_path):
    first = inspect_images(photos)
    assert sorted(inspected) == sorted(path.name for path in photos)
    inspected.clear()
    assert inspect_images(photos) == first and inspected == ["corrupt.png"]
    inspected.clear()
    photos[1].write_bytes(flat_png(30, 6, 1))
    status = photos[2].stat()
    os.utime(photos[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    photos[3].unlink()
    photos[6].write_bytes(image("PNG"))
    (tmp_path / "photos" / "new.png").write_bytes(image("PNG"))
    found = inspect_images([*photos, tmp_path / "photos" / "new.png"])
    assert sorted(inspected) == ["1.png", "2.png", "corrupt.png", "new.png"]
    assert [info.kind for info in found] == ["", "", "", "missing", "", "", "", ""]
    assert found[1].width == 30 and found[0] == first[0]
    inspected.clear()
    assert [f.kind for f in faults_of(photos)] == ["missing"] and inspected == []


def test_other_versions_and_folders_have_files_of_their_own(photos, inspected, root, monkeypatch):
    inspect_images(photos[:5])
    monkeypatch.setattr(images.PIL, "__version__", "another")
    inspect_images(photos[:5])
    inspect_images(photos[5:6])
    assert len(inspected) == 11 and len(list(root.iterdir())) == 3


def test_an_image_that_changes_meanwhile_is_not_remembered(photos, inspected, monkeypatch):
    inspect_image = images.inspect_image

    def slow(path):
        info = inspect_image(path)
        os.utime(path, ns=(0, 1))
        return info

    os.utime(photos[0], ns=(0, 0))
    monkeypatch.setattr(images, "inspect_image", slow)
    inspect_images(photos[:1])
    os.utime(photos[0], ns=(0, 0))
    inspect_images(photos[:1])
    assert inspected == ["0.png"] * 2


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def spoil_cut(file):
    os.truncate(file, file.stat().st_size - 5000)


def spoil_a_bit(file):
    data = bytearray(file.read_bytes())
    data[data.index(b"PNG")] ^= 1
    file.write_bytes(data)


def spoil_by_garbage(file):
    file.write_bytes(bytes(range(256)) * 40)


def spoil_by_a_pickle(file):
    file.write_bytes(pickle.dumps(Payload(file.parent / "executed")))


def spoil_by_a_folder(file):
    file.unlink()
    file.mkdir()


def spoil_by_rows_of_other_things(file):
    with sqlite3.connect(file) as database:
        database.execute("UPDATE images SET height = 7")


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_damaged_file_is_noticed_and_replaced(spoil, photos, inspected, root, caplog):
    expected = inspect_images(photos)
    (file,) = root.iterdir()
    spoil(file)
    inspected.clear()
    assert inspect_images(photos) == expected and len(inspected) == len(photos)
    assert len(caplog.records) == 1
    assert "inspected again" in caplog.text and str(file) in caplog.text
    assert not (root / "executed").exists()
    inspected.clear()
    assert inspect_images(photos) == expected and inspected == ["corrupt.png"]
    assert len(caplog.records) == 1


def test_a_link_in_its_place_is_not_written_through(photos, root, tmp_path):
    inspect_images(photos)
    (file,) = root.iterdir()
    mine = tmp_path / "mine.sqlite3"
    for content in (b"of somebody", b"", file.read_bytes()):
        mine.write_bytes(content)
        file.unlink()
        file.symlink_to(mine)
        inspect_images(photos)
        assert mine.read_bytes() == content and not file.is_symlink()


def test_rows_of_another_folder_are_not_used(photos, inspected, root, tmp_path):
    inspect_images(photos)
    (file,) = root.iterdir()
    (tmp_path / "others").mkdir()
    others = [tmp_path / "others" / path.name for path in photos[:5]]
    for other, path in zip(others, photos, strict=False):
        other.write_bytes(path.read_bytes())
    inspect_images(others)
    (new,) = {*root.iterdir()} - {file}
    new.write_bytes(file.read_bytes())
    inspected.clear()
    inspect_images(others)
    assert len(inspected) == 5


def test_without_a_folder_it_works_and_warns_once(photos, root, caplog):
    expected = inspect_images(photos)
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    root.parent.rmdir()
    root.parent.write_text("a file")
    caplog.clear()
    assert inspect_images(photos) == expected
    assert len(caplog.records) == 1 and "VISIONKIT_CACHE" in caplog.text


def test_a_full_disk_is_reported_once_and_costs_nothing_else(photos, root, inspected, caplog):
    inspect_images(photos[:1])
    (file,) = root.iterdir()
    with sqlite3.connect(file) as database:
        pages = database.execute("PRAGMA page_count").fetchone()[0]
    connect = sqlite3.connect

    def full(*args, **options):
        database = connect(*args, **options)
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    many = [path.with_name(f"{i}-{'x' * 200}.png") for i in range(100) for path in photos[:1]]
    for path in many:
        path.write_bytes(photos[0].read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.sqlite3, "connect", full)
        found = inspect_images([*photos, *many])
    assert [info.kind for info in found] == [""] * 6 + ["damaged"] + [""] * 100
    assert len(caplog.records) == 1 and "full" in caplog.text
    inspected.clear()
    assert inspect_images(photos[:1])[0] == found[0] and inspected == []


def test_a_read_only_folder_is_reported_once_and_still_used(photos, inspected, caplog):
    first = inspect_images(photos[:3])
    connect = sqlite3.connect

    def read_only(path, **options):
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    inspected.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.sqlite3, "connect", read_only)
        assert inspect_images(photos[:3]) == first and not caplog.records
        inspect_images(photos)
    assert sorted(inspected) == ["0.png", "3.png", "4.png", "corrupt.png"]
    assert len(caplog.records) == 1 and "readonly" in caplog.text


@pytest.mark.slow
def test_several_processes_may_write_one_file(root):
    """Each in its own connections and transactions, at the same time."""
    script = """
import sys
from visionkit.data.checks.images import ImageInfo, ImageInfoCache
cache = ImageInfoCache("/a")
for i in range(200):
    cache.add([(f"/a/{sys.argv[1]}-{i}.png", (1, i), ImageInfo(height=i))])
cache.close()
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    both = ImageInfoCache("/a")
    for name in "abc":
        for i in range(200):
            assert both.find(f"/a/{name}-{i}.png", (1, i)) == ImageInfo(height=i)
    assert both.find("/a/a-1.png", (1, 2)) is None


def test_without_images_nothing_is_written(root):
    assert inspect_images([]) == [] and not root.exists()


def test_an_image_has_one_row(root):
    for change in range(100):
        ImageInfoCache("/a").add([("/a/1.png", (1, change), ImageInfo())])
    (file,) = root.iterdir()
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT COUNT(*) FROM images").fetchone() == (1,)
    assert ImageInfoCache("/a").find("/a/1.png", (1, 99)) == ImageInfo()


def test_names_that_are_not_utf_8_are_remembered(photos, inspected):
    odd = photos[0].with_name(os.fsdecode(b"\xff.png"))
    odd.write_bytes(photos[0].read_bytes())
    for _ in range(2):
        assert inspect_images([odd])[0].width == 8
    assert len(inspected) == 1


def test_nothing_of_the_users_is_changed(photos):
    def state():
        folder = photos[0].parent
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}

    before = state()
    inspect_images(photos)
    inspect_images(photos)
    assert state() == before
