"""What was found in images is remembered, and never believed where it might not be ours."""

import os
import pickle
from pathlib import Path

import pytest

from support.damaged import faults_of, flat_png, image
from visionkit.data.checks import images
from visionkit.data.checks.images import ImageInfo, ImageInfoCache, inspect_images


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "looks"


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    names = [*(f"{i}.png" for i in range(5)), "sub/0.png", "broken.png"]
    paths = [tmp_path / "photos" / name for name in names]
    for i, path in enumerate(paths):
        path.write_bytes(flat_png(8 + i, 6, i) if i < 6 else b"broken")
    return paths


@pytest.fixture
def looked(monkeypatch):
    """The names of the images that are looked at."""
    names, inspect_image = [], images.inspect_image

    def counting(path):
        names.append(path.name)
        return inspect_image(path)

    monkeypatch.setattr(images, "inspect_image", counting)
    return names


def test_only_what_is_new_changed_or_broken_is_looked_at_again(photos, looked, tmp_path):
    first = inspect_images(photos)
    assert sorted(looked) == sorted(path.name for path in photos)
    looked.clear()
    assert inspect_images(photos) == first and looked == ["broken.png"]
    looked.clear()
    photos[1].write_bytes(flat_png(30, 6, 1))
    status = photos[2].stat()
    os.utime(photos[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    photos[3].unlink()
    photos[6].write_bytes(image("PNG"))
    (tmp_path / "photos" / "new.png").write_bytes(image("PNG"))
    found = inspect_images([*photos, tmp_path / "photos" / "new.png"])
    assert sorted(looked) == ["1.png", "2.png", "broken.png", "new.png"]
    assert [look.kind for look in found] == ["", "", "", "missing", "", "", "", ""]
    assert found[1].width == 30 and found[0] == first[0]
    looked.clear()
    assert [f.kind for f in faults_of(photos)] == ["missing"] and looked == []


def test_other_versions_and_folders_are_told_apart(photos, looked, root, monkeypatch):
    inspect_images(photos[:5])
    monkeypatch.setattr(images.PIL, "__version__", "another")
    inspect_images(photos[:5])
    inspect_images(photos[5:6])
    assert len(looked) == 11 and len(list(root.iterdir())) == 3


def test_a_image_that_changes_while_it_is_looked_at_is_not_remembered(photos, looked, monkeypatch):
    inspect_image = images.inspect_image

    def slow(path):
        look = inspect_image(path)
        os.utime(path, ns=(0, 1))
        return look

    os.utime(photos[0], ns=(0, 0))
    monkeypatch.setattr(images, "inspect_image", slow)
    inspect_images(photos[:1])
    os.utime(photos[0], ns=(0, 0))
    inspect_images(photos[:1])
    assert looked == ["0.png"] * 2


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def spoil_cut(file):
    os.truncate(file, file.stat().st_size - 9)


def spoil_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)


def spoil_empty(file):
    os.truncate(file, 0)


def spoil_by_garbage(file):
    file.write_bytes(bytes(range(256)) * 20)


def spoil_by_a_pickle(file):
    file.write_bytes(pickle.dumps(Payload(file.parent / "executed")))


def spoil_by_a_folder(file):
    file.unlink()
    file.mkdir()


def spoil_by_those_of_another_folder(file):
    file.write_bytes(file.read_bytes().replace(b"photos", b"others"))


def spoil_by_lines_of_other_things(file):
    first, *lines = file.read_bytes().splitlines(keepends=True)
    texts = ["[]", "{}", "[1, 2]", "[" * 99_999]
    texts += [line.decode()[9:].replace(", 6, ", ', "6", ').rstrip("\n") for line in lines]
    file.write_bytes(first + b"".join(images._line(text) for text in texts))


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_spoilt_file_is_noticed_and_made_anew(spoil, photos, looked, root, caplog):
    expected = inspect_images(photos)
    (file,) = root.iterdir()
    spoil(file)
    looked.clear()
    assert inspect_images(photos) == expected and len(looked) > 1
    assert (
        len(caplog.records) == 1 and "looked at again" in caplog.text and str(file) in caplog.text
    )
    assert not (root / "executed").exists()
    looked.clear()
    assert inspect_images(photos) == expected and looked == ["broken.png"]
    assert len(caplog.records) == 1


def test_a_link_in_its_place_is_not_written_through(photos, root, tmp_path):
    inspect_images(photos)
    (file,) = root.iterdir()
    mine = tmp_path / "mine.txt"
    mine.write_text("of somebody")
    file.unlink()
    file.symlink_to(mine)
    inspect_images(photos)
    assert mine.read_text() == "of somebody" and not file.is_symlink()


def test_without_a_folder_it_works_and_says_so_once(photos, root, caplog):
    expected = inspect_images(photos)
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    root.parent.rmdir()
    root.parent.write_text("a file")
    caplog.clear()
    assert inspect_images(photos) == expected
    assert len(caplog.records) == 1 and "VISIONKIT_CACHE" in caplog.text


def test_a_full_disk_is_said_once(photos, root, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "open", full, raising=False)
    assert [look.kind for look in inspect_images(photos * 50)][:7] == [""] * 6 + ["damaged"]
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_two_processes_may_write_one_file(root):
    one, other = ImageInfoCache("/a/"), ImageInfoCache("/a/")
    look = ImageInfo(height=3, width=4, mode="RGB")
    one.add([("1.png", (1, 1), look)])
    other.add([("2.png", (2, 2), look)])
    one.add([("3.png", (3, 3), look)])
    both = ImageInfoCache("/a/")
    assert [both.find(f"{i}.png", (i, i)) for i in (1, 2, 3)] == [look] * 3
    assert both.find("1.png", (1, 2)) is None


def test_the_file_does_not_grow_for_ever(root):
    for change in range(300):
        ImageInfoCache("/a/").add([("1.png", (1, change), ImageInfo())])
    (file,) = root.iterdir()
    assert len(file.read_bytes().splitlines()) <= 110
    assert ImageInfoCache("/a/").find("1.png", (1, 299)) == ImageInfo()


def test_nothing_of_the_users_is_changed(photos):
    def state():
        folder = photos[0].parent
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}

    before = state()
    inspect_images(photos)
    inspect_images(photos)
    assert state() == before
