"""The index of a large file in the cache: found by content, never in the way."""

import json
import logging
import multiprocessing
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_coco_index import ODD, check, content, plain

from visionkit.data.coco import index as index_module
from visionkit.data.coco.index import open_index
from visionkit.data.coco.tables import flat
from visionkit.data.datasets.coco import Coco
from visionkit.data.loading import cache
from visionkit.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "SMALLEST", 0)
    monkeypatch.setenv("VISIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "annotations"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(plain(20) + ODD)))
    return path


def entries(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_second_opening_reads_no_json(path, folder, monkeypatch, caplog):
    first = open_index(path)
    assert entries(folder) == [first.folder]
    monkeypatch.setattr(index_module, "read_index", None)
    second = open_index(path)
    check(second, content(plain(20) + ODD))
    assert (second.names, second.has_masks) == (first.names, first.has_masks)
    assert (second.image_keys, second.object_keys) == (first.image_keys, first.object_keys)
    assert not caplog.records


def test_every_column_is_that_of_a_fresh_reading(path):
    open_index(path)
    kept, fresh = open_index(path), index_module.read_index(path)
    for table in ("images", "objects"):
        expected = flat(getattr(fresh, table), table)
        found = flat(getattr(kept, table), table)
        assert found.keys() == expected.keys()
        for name, column in expected.items():
            assert found[name].dtype == column.dtype
            np.testing.assert_array_equal(found[name], column)


def test_it_is_found_by_content_alone(path, folder, tmp_path, monkeypatch):
    open_index(path)
    copy = tmp_path / "elsewhere.json"
    shutil.copy(path, copy)
    monkeypatch.setattr(index_module, "read_index", None)
    assert open_index(copy).path == copy


def test_other_content_of_the_same_size_and_time_is_seen(path, folder):
    open_index(path)
    before = path.stat()
    path.write_text(path.read_text().replace('"ox"', '"yk"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert open_index(path).categories[0]["name"] == "yk"
    assert len(entries(folder)) == 2


def test_small_files_and_files_with_faults_are_not_kept(path, folder, monkeypatch):
    monkeypatch.setattr(index_module, "SMALLEST", 1 << 20)
    assert open_index(path).folder is None
    monkeypatch.setattr(index_module, "SMALLEST", 0)
    path.write_text(json.dumps(content([{**ODD[0], "bbox": [1]}])))
    for _ in range(2):
        assert open_index(path).faults.count == 1
    records = [{**ODD[0], "segmentation": [[1]]}, *plain(5)]
    path.write_text(json.dumps(content(records)))
    for _ in range(2):
        index = open_index(path)
        assert index.mask_faults.count == 1 and index.folder is None
        for copy in (index, pickle.loads(pickle.dumps(index))):
            assert [copy.objects.record(i) for i in range(1, 6)] == plain(5)
    assert entries(folder) == []


def spoil_truncate(entry):
    column = entry / "objects.bbox.npy"
    column.write_bytes(column.read_bytes()[:-8])


def spoil_change(entry):
    column = entry / "objects.masks.points.npy"
    data = bytearray(column.read_bytes())
    data[-1] ^= 1
    column.write_bytes(data)


def spoil_kind(entry):
    column = entry / "objects.area.npy"
    np.save(column, np.array(list(np.load(column)), object), allow_pickle=True)


def spoil_pickle(entry):
    (entry / "objects.area.npy").write_bytes(pickle.dumps([1.5]))


def spoil_meta(entry):
    (entry / "index.json").write_text("{}")


def spoil_text(entry):
    (entry / "index.json").write_bytes(b"\x00\xff" * 20)


def spoil_list(entry):
    (entry / "index.json").write_text("[1, 2]")


def spoil_missing(entry):
    (entry / "images.ids.npy").unlink()


def spoil_file(entry):
    shutil.rmtree(entry)
    entry.write_text("not a folder")


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_damaged_or_foreign_entry_is_replaced(path, folder, spoil, caplog):
    spoil(open_index(path).folder)
    with caplog.at_level(logging.WARNING, "visionkit"):
        check(open_index(path), content(plain(20) + ODD))
    assert "is unusable, reading the file" in caplog.text
    caplog.clear()
    check(open_index(path), content(plain(20) + ODD))
    assert not caplog.records


def test_another_version_is_another_entry(path, folder, monkeypatch):
    open_index(path)
    monkeypatch.setattr(index_module, "FORMAT", index_module.FORMAT + 1)
    open_index(path)
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("blocked", ["a file", "no right", "disk full"])
def test_without_a_cache_it_works_and_says_so(path, folder, blocked, monkeypatch, caplog):
    if blocked == "a file":
        folder.parent.write_text("")
    else:

        def refuse(*_):
            raise OSError(28, "No space left on device") if "full" in blocked else PermissionError()

        monkeypatch.setattr("visionkit.data.loading.cache.save", refuse)
    before = sorted(path.parent.iterdir())
    check(open_index(path), content(plain(20) + ODD))
    assert caplog.text.count("cannot write its index to the cache") == 1
    assert "VISIONKIT_CACHE" in caplog.text
    assert set(path.parent.iterdir()) - set(before) <= {folder.parent}
    assert entries(folder) == [] if folder.is_dir() else True


@pytest.mark.parametrize("text", ["", "[]", '{"images": [', None])
def test_a_file_that_cannot_be_read_leaves_nothing(path, folder, text, caplog):
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"annotation file {path}")):
        open_index(path)
    assert entries(folder) == [] and not caplog.records


@pytest.mark.parametrize("ending", ["read_index", "commit", "open_index"])
def test_a_process_that_dies_leaves_a_whole_entry_or_none(path, folder, ending):
    """Its end comes before the work that is named, or right after all of it."""

    def run():
        if ending != "open_index":
            owner = cache if ending == "commit" else index_module
            setattr(owner, ending, lambda *_, **__: os._exit(3))
        open_index(path)
        os._exit(3)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 3
    visible = [entry for entry in entries(folder) if not entry.name.startswith(".")]
    assert len(visible) == (ending == "open_index")
    index = open_index(path)
    check(index, content(plain(20) + ODD))
    assert index.folder in entries(folder) and index.folder in (visible or [index.folder])


def _open(path):
    return len(open_index(path).objects.ids)


def test_processes_may_make_it_at_once(path, folder):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_open, [path] * 8) == [30] * 8
    assert len(entries(folder)) == 1
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_another_process_gets_the_files_and_not_a_copy(path):
    index = open_index(path)
    packed = pickle.dumps(index)
    assert len(packed) < 1000
    check(pickle.loads(packed), content(plain(20) + ODD))
    shutil.rmtree(index.folder)
    check(pickle.loads(packed), content(plain(20) + ODD))


def test_a_pickled_dataset_holds_no_copy_of_the_segmentations(path, tmp_path):
    records = [{**record, "image_id": 70} for record in plain(1000)]
    data = content(records) | {"images": content(records)["images"][:1]}
    (tmp_path / "a.png").touch()
    path.write_text(json.dumps(data))
    dataset = Coco(str(tmp_path), str(path))
    points = dataset.ground_truth().masks.points.nbytes
    assert points > 2 * len(pickle.dumps(dataset))
    assert pickle.loads(pickle.dumps(dataset)).ground_truth().masks.points.nbytes == points


def test_warnings_come_at_each_start(path, tmp_path, caplog):
    records = plain(3)
    records[1]["bbox"] = [1, 1, 0, 5]
    data = content(records)
    for image in data["images"]:
        file = tmp_path / "images" / image["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    data["images"] = data["images"][:2]
    path.write_text(json.dumps(data))
    for _ in range(2):
        caplog.clear()
        assert Coco(str(tmp_path / "images"), str(path)).dropped["boxes without area"] == 1
        assert "1 boxes without area dropped" in caplog.text
    records[0]["bbox"] = [1]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="1 problem"):
        Coco(str(tmp_path / "images"), str(path))


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("VISIONKIT_CACHE", "/v")
    assert cache.cache_folder() == Path("/v")
    monkeypatch.delenv("VISIONKIT_CACHE")
    assert cache.cache_folder() == Path("/x/visionkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_folder() == Path("/h/.cache/visionkit")


def test_the_least_recently_used_entries_go_first(tmp_path):
    def publish(entry, limit):
        with cache.staging(entry) as folder:
            (folder / "data").write_bytes(bytes(100))
            cache.commit(folder, entry, limit)

    for age, name in enumerate("abc"):
        publish(tmp_path / name, 1000)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    cache.touch(tmp_path / "c")
    publish(tmp_path / "d", 300)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c", "d"]
    publish(tmp_path / "e", 50)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_an_entry_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="full"), cache.staging(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise OSError("full")
    with cache.staging(tmp_path / "a") as folder:
        (folder / "unpublished").touch()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".dead").mkdir()
    os.utime(tmp_path / ".dead", (0, 0))
    (tmp_path / ".alive").mkdir()
    for name in ("first", "late"):  # that of another process, which was quicker, stays
        with cache.staging(tmp_path / "b") as folder:
            (folder / name).touch()
            cache.commit(folder, tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["first"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".alive", "b"]
