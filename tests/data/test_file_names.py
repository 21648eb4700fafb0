"""A file name in annotations stays in its folder, and cannot write into a log."""

import json
import logging
import re

import pytest
from PIL import Image

from support.coco_files import save, small
from support.damaged import image
from visionkit.data.checks.findings import Problems
from visionkit.data.coco.records import RecordReader
from visionkit.data.datasets.coco import Coco, Crops
from visionkit.data.datasets.folder import ImageFolder, Images
from visionkit.data.datasets.label_maps import LabelMaps
from visionkit.errors import DataError, printable

LEAVING = [
    *("../a.png", "a/../../b.png", "..", "sub/..", "sub\\..\\a.png", "~/a.png", "~root/a.png"),
    *("http://x.org/a.png", "file:///etc/passwd", "s3://b/a.png", "a\0.png", "", None, 7, ["a"]),
]
ELSEWHERE = ["/etc/passwd", "//server/share/a.png", "C:\\x.png", "c:/x.png", "\\\\server\\a.png"]


@pytest.mark.parametrize("key", ["file_name", "semantic"])
def test_names_that_leave_the_folder_are_refused(key, tmp_path):
    problems = Problems("x")
    given = [name for name in LEAVING if key == "file_name" or name not in (None, "")]
    records = [{key: "good/a b.png"}, *({key: name} for name in given), {key: "~a.jpg"}]
    found = RecordReader("images", problems).file_names(records, key, required=key == "file_name")
    assert found == ["good/a b.png", *[""] * len(given), "~a.jpg"]
    assert problems.count == len(given)

    for name in [name for name in given if isinstance(name, str)] + ELSEWHERE:
        save(tmp_path, small())
        content = small()
        content["images"][0][key] = name
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(DataError) as caught:
            Coco(str(tmp_path / "images"), str(tmp_path / "a.json"))
        (found,) = caught.value.findings
        assert found.key == key and found.place.index == 0
        assert found.kind == ("path" if name else "value")


def test_a_file_may_be_named_in_other_ways(tmp_path):
    data = save(tmp_path, small())
    folder = tmp_path / "data" / "images"
    folder.parent.mkdir()
    data.images.rename(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for name in (
        *("sub\\b.png", ".\\sub\\b.png", "./sub/b.png", f"{folder}/sub/b.png", "images/sub/b.png"),
        *("data/images/sub/b.png", "images\\sub\\b.png", f"{tmp_path.name}/data/images/sub/b.png"),
    ):
        content = small()
        content["images"][1]["file_name"] = name
        (tmp_path / "a.json").write_text(json.dumps(content))
        for images in (folder, link):
            if images == folder or "images" not in name or str(folder) in name:
                data = Coco(str(images), str(tmp_path / "a.json"))
                assert data.file_names == ["a.png", "sub/b.png"], name
                assert len(data[1].image) == 3


def test_double_slashes_begin_no_path_anew(tmp_path):
    data = save(tmp_path, small())
    secret = tmp_path / "secret.png"
    (data.images / "a.png").rename(secret)
    for name in (f"images/{secret}", f"{data.images}/{secret}", f"./{secret}", f"images\\{secret}"):
        content = small()
        content["images"][0]["file_name"] = name
        data.annotations.write_text(json.dumps(content))
        with pytest.raises(DataError, match="1 problem"):
            Coco(str(data.images), str(data.annotations), links="any")
    content["images"][1]["file_name"] = "sub//b.png"
    content["images"][0]["file_name"] = f"{data.images}//sub//b.png"
    data.annotations.write_text(json.dumps(content))
    assert Coco(str(data.images), str(data.annotations)).image_path(0).samefile(data.image_path(1))


def test_a_name_that_is_there_as_it_is_comes_first(tmp_path):
    content = small()
    content["images"][0]["file_name"] = "images/a.png"
    content["images"][1]["file_name"] = "sub\\b.png"  # not a folder, but part of a name
    data = save(tmp_path, content)
    assert data.file_names == ["images/a.png", "sub\\b.png"]
    Image.new("L", (20, 10)).save(data.images / "a.png")
    assert Coco(str(data.images), str(data.annotations)).file_names[0] == "images/a.png"


def test_coco_url_names_the_file_where_file_name_does_not(tmp_path):
    """As in LVIS."""
    data = save(tmp_path, small())
    content, url = small(), "http://images.example.org/val2017/"
    content["images"][0] |= {"file_name": None, "coco_url": f"{url}a.png"}
    del content["images"][1]["file_name"]
    content["images"][1]["coco_url"] = f"{url}b%20c.png?x=1"
    (data.images / "val2017").mkdir()
    (data.images / "sub/b.png").rename(data.images / "val2017" / "b c.png")
    data.annotations.write_text(json.dumps(content))
    data = Coco(str(data.images), str(data.annotations))
    assert data.file_names == ["a.png", "val2017/b c.png"] and len(data[1].boxes) == 0
    for url in ("http://x.org/..%2f..%2fa.json", "http://x.org/%5c..%5ca.json", "http://x.org", ""):
        content["images"][0]["coco_url"] = url
        data.annotations.write_text(json.dumps(content))
        with pytest.raises(DataError, match="1 problem"):
            Coco(str(data.images), str(data.annotations))


def test_long_and_odd_names_take_no_time():
    names = ["a." * 200_000 + "!", "a" * 10**6 + "\n", "-/" * 100_000 + "*", "a b" * 100_000 + "\t"]
    records = [{"file_name": name} for name in names]
    found = RecordReader("images", Problems("x")).file_names(records, "file_name", required=True)
    assert found == names  # an expression that explodes would take years


def linked(tmp_path):
    """Coco data of which one image and one folder are links to elsewhere, one a link inside."""
    data = save(tmp_path, small())
    folder, elsewhere = data.images, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "a.png").rename(elsewhere / "a.png")
    (folder / "a.png").symlink_to(elsewhere / "a.png")
    (folder / "sub").rename(elsewhere / "sub")
    (folder / "sub").symlink_to(elsewhere / "sub")
    return data, folder, elsewhere


def test_links_that_lead_out_are_refused_unless_they_are_allowed(tmp_path):
    data, folder, elsewhere = linked(tmp_path)
    annotations = str(data.annotations)
    for kind in (Coco, Crops):
        with pytest.raises(DataError) as caught:
            kind(str(folder), annotations)
        message = str(caught.value)
        assert "2 problems" in message and "links: any" in message
        said = "'a.png', but it is a link, or passes one, that leads out to"
        assert f"{said} {elsewhere}" in message
        assert "sub/b.png" in message
    assert len(Coco(str(folder), annotations, links="any")) == 2


def test_links_that_stay_inside_and_a_linked_folder_are_fine(tmp_path):
    data = save(tmp_path, small())
    folder = data.images
    (folder / "sub" / "b.png").rename(folder / "real.png")
    (folder / "sub" / "b.png").symlink_to("../real.png")
    (folder / "a.png").rename(folder / "other.png")
    (folder / "a.png").symlink_to(folder / "other.png")
    assert len(Coco(str(folder), str(data.annotations))) == 2
    (tmp_path / "link").symlink_to(folder)
    assert len(Coco(str(tmp_path / "link"), str(data.annotations))[0].image) == 3
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"a\.png', but it is not in"):
        Coco(str(folder), str(data.annotations))


def test_a_folder_with_a_longer_name_is_not_inside(tmp_path):
    data = save(tmp_path, small())
    (tmp_path / "images2").mkdir()
    (data.images / "a.png").rename(tmp_path / "images2" / "a.png")
    (data.images / "a.png").symlink_to(tmp_path / "images2" / "a.png")
    with pytest.raises(DataError, match="leads out"):
        Coco(str(data.images), str(data.annotations))


def test_semantic_maps_behind_links_are_refused_too(tmp_path):
    content = small()
    content["images"][0]["semantic"] = "maps/a.png"
    content["semantic_classes"] = ["x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "data" / "maps").mkdir(parents=True)
    (tmp_path / "other" / "a.png").write_bytes(image("PNG"))
    (tmp_path / "data" / "maps" / "a.png").symlink_to(tmp_path / "other" / "a.png")
    with pytest.raises(DataError, match=r"maps/a\.png', but .*leads out"):
        save(tmp_path / "data", content)


def test_in_folders_that_are_listed_links_to_files_are_the_users_own(tmp_path, caplog):
    """No file names them, so nobody else could have; links to folders might lead in circles."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").write_bytes(image("PNG"))
    for name in ("class/a", "maps/a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.png").symlink_to(tmp_path / "real" / "x.png")
    (tmp_path / "class" / "deeper").symlink_to(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").symlink_to(tmp_path / "class")
    with caplog.at_level(logging.WARNING, "visionkit"):
        assert ImageFolder(str(root)).file_names == ["one/a.png"]
        assert Images(str(tmp_path / "class")).file_names == ["a.png"]
        maps = LabelMaps(str(tmp_path / "class"), str(tmp_path / "maps"), classes=["x"])
        assert maps.file_names == ["a.png"]
    assert len(caplog.messages) == 3
    assert all("deeper is a link to a folder and is not followed" in m for m in caplog.messages)


def test_names_are_shown_escaped(tmp_path):
    assert printable("grün 猫.png") == "grün 猫.png"
    assert printable("a\nb\x1b[0m\u202e\udcff") == "a\\nb\\x1b[0m\\u202e\\udcff"


def test_no_name_in_annotations_can_forge_a_line(tmp_path):
    content = small()
    data = save(tmp_path, content)
    for change in ({"file_name": "x\nerror: forged\x1b[2J"}, {"id": "7\n8"}, {"width": "\x9b"}):
        forged = json.loads(json.dumps(content))
        forged["images"][0].update(change)
        path = tmp_path / "forged.json"
        path.write_text(json.dumps(forged))
        with pytest.raises(DataError) as caught:
            Coco(str(data.images), str(path))
        for line in str(caught.value).splitlines():
            assert line.isprintable() and not re.match(r"\s*error", line)


def test_a_name_that_is_too_long_is_a_data_error(tmp_path):
    content = small()
    data = save(tmp_path, content)
    content["images"][0]["file_name"] = "a" * 5000 + ".png"
    (tmp_path / "long.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="it is not in"):
        Coco(str(data.images), str(tmp_path / "long.json"))


def test_a_name_in_another_unicode_form_is_told_as_such(tmp_path):
    content = small()
    content["images"][0]["file_name"] = "caf\u00e9.png"  # one character
    save(tmp_path, content)
    (tmp_path / "images" / "caf\u00e9.png").rename(tmp_path / "images" / "cafe\u0301.png")  # two
    with pytest.raises(DataError, match=r"not in .*, but the same name in another .*\(NFD\) is"):
        Coco(str(tmp_path / "images"), str(tmp_path / "a.json"))
