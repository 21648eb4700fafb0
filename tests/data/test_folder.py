"""Folders of classes, IDX files, and folders of unlabeled images."""

import gzip
import json
import struct

import numpy as np
import pytest
from PIL import Image

from visionkit.config import load_config
from visionkit.config.components import build, components
from visionkit.data.checks.summary import dataset_summary, summary_lines
from visionkit.data.datasets.coco import Coco
from visionkit.data.datasets.folder import ImageFolder, Images
from visionkit.data.datasets.idx import Idx
from visionkit.data.files import is_visible
from visionkit.errors import DataError
from visionkit.types import Classes


def put(root, *names, value=50, size=(6, 4)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, value).save(path, format="PNG")


def test_folders_are_classes(tmp_path):
    put(tmp_path, "dog/1.png", "dog/deep/2.JPG", "cat/0.webp", "ant/9.png")
    put(tmp_path, "cat/.hidden.png", "__MACOSX/x.png", ".git/x.png", "cat/__MACOSX/a.png")
    put(tmp_path, "@eaDir/x.png", "cat/@eaDir/a.png/b.png", "#recycle/x.png", "$RECYCLE.BIN/x.png")
    put(tmp_path, "lost+found/x.png", "System Volume Information/x.png")
    (tmp_path / "dog" / "Thumbs.db").write_text("no image")
    (tmp_path / "notes.txt").write_text("no class")
    data = ImageFolder(str(tmp_path))
    assert data.keys == ("class_id", "identity")
    assert data.classes == {"class_id": Classes(("ant", "cat", "dog"), (0, 1, 2))}
    assert data.file_names == ["ant/9.png", "cat/0.webp", "dog/1.png", "dog/deep/2.JPG"]
    assert is_visible("@home") and is_visible("#1.png") and is_visible("$5.png")
    assert [sample.class_id for sample in data] == [0, 1, 2, 2]
    assert [sample.identity for sample in data] == data.identities.tolist() == [0, 1, 2, 2]
    sample = data[3]
    assert sample.image_id == 3 and sample.size == sample.orig_size == (4, 6)
    assert sample.image.tolist() == [[[50] * 6] * 4] * 3
    assert data.image_path(3) == tmp_path / "dog" / "deep" / "2.JPG"
    with pytest.raises(IndexError):
        data[4]


def test_classes_of_another_split_are_matched_by_name(tmp_path):
    put(tmp_path, "dog/1.png", "ant/9.png")
    data = ImageFolder(str(tmp_path), classes=["dog", "cat", "ant"])
    assert data.classes["class_id"].names == ("dog", "cat", "ant")
    assert [sample.class_id for sample in data] == [2, 0]
    with pytest.raises(DataError, match=r"not expected: 'ant'") as caught:
        ImageFolder(str(tmp_path), classes=["dog", "Ant"])
    assert "missing here: 'Ant'" in str(caught.value)


def test_only_some_class_folders(tmp_path):
    put(tmp_path, "dog/1.png", "cat/2.png", "ant/9.png")
    (tmp_path / "empty").mkdir()
    data = ImageFolder(str(tmp_path), only=["dog", "ant"])
    assert data.classes["class_id"] == Classes(("dog", "ant"), (0, 1))
    assert data.file_names == ["ant/9.png", "dog/1.png"]
    assert [(s.class_id, s.identity) for s in data] == [(1, 1), (0, 0)]
    for only, message in [
        (["dog", "cta"], "only: unknown class 'cta'; did you mean 'cat'"),
        (["zebra"], "valid: ant, cat, dog, empty"),
        ([], "at least one"),
        (["dog", "dog"], "each once"),
    ]:
        with pytest.raises(DataError, match=message):
            ImageFolder(str(tmp_path), only=only)


def test_folders_without_classes_or_images(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder(str(tmp_path / "none"))
    put(tmp_path, "loose.png")
    with pytest.raises(DataError, match="no class folders"):
        ImageFolder(str(tmp_path))
    put(tmp_path, "dog/1.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "Thumbs.db").write_text("x")
    with pytest.raises(DataError, match="cat has no images"):
        ImageFolder(str(tmp_path))


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.arange(5 * 4 * 3).reshape(5, 4, 3)
LABELS = np.array([0, 2, 1, 2, 0])


def idx_files(folder, images=None, labels=None):
    images = idx_bytes(IMAGES) if images is None else images
    labels = idx_bytes(LABELS) if labels is None else labels
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return str(folder / "images"), str(folder / "labels")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_plain_and_compressed(tmp_path, pack):
    data = Idx(*idx_files(tmp_path, pack(idx_bytes(IMAGES)), pack(idx_bytes(LABELS))))
    assert len(data) == 5 and data.keys == ("class_id", "identity")
    assert data.classes == {"class_id": Classes(("0", "1", "2"), (0, 1, 2))}
    assert [sample.class_id for sample in data] == LABELS.tolist()
    assert data[1].image.tolist() == [IMAGES[1].tolist()] * 3
    assert data[1].size == data[1].orig_size == (4, 3)


def test_idx_class_names(tmp_path):
    data = Idx(*idx_files(tmp_path), classes=["shirt", "shoe", "bag", "hat"])
    assert data.classes["class_id"].names == ("shirt", "shoe", "bag", "hat")
    with pytest.raises(DataError, match=r"label 2.*2 names"):
        Idx(*idx_files(tmp_path), classes=["shirt", "shoe"])
    with pytest.raises(DataError, match="more than once"):
        Idx(*idx_files(tmp_path), classes=["shirt", "shoe", "shoe"])


def test_only_some_idx_classes(tmp_path):
    files = idx_files(tmp_path)
    data = Idx(*files, classes=["shirt", "shoe", "bag", "hat"], only=["bag", "shirt"])
    assert data.classes["class_id"] == Classes(("bag", "shirt"), (2, 0))
    assert len(data) == 4 and data.image_ids == [s.image_id for s in data] == [0, 1, 3, 4]
    assert [s.class_id for s in data] == data.identities.tolist() == [1, 0, 0, 1]
    assert data[1].image.tolist() == [IMAGES[1].tolist()] * 3
    assert data[2].image.tolist() == [IMAGES[3].tolist()] * 3
    assert len(Idx(*files, only=["1"])) == 1
    with pytest.raises(DataError, match=r"labels: only: unknown class 'bug'.*'bag'"):
        Idx(*files, classes=["shirt", "shoe", "bag"], only=["bug"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (b"", "is empty"),
        (b"GARBAGE!", "got 0x47415242"),
        (idx_bytes(LABELS), "images and labels swapped"),
        (idx_bytes(IMAGES)[:-1], "expected 60 bytes.*got 59"),
        (idx_bytes(IMAGES) + b"x", "got more"),
        (idx_bytes(IMAGES)[:9], "damaged"),
        (idx_bytes(IMAGES[:3]), "3 images.*5 labels"),
        (bytes([0, 0, 13, 3]) + bytes(12), "expected 0x00000803"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "too many"),
        (gzip.compress(idx_bytes(IMAGES), mtime=0)[:-12], "images"),
        (b"\x1f\x8b garbage", "images"),
    ],
)
def test_idx_faults(tmp_path, images, message):
    with pytest.raises(DataError, match=message):
        Idx(*idx_files(tmp_path, images=images))


def test_missing_idx_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Idx(str(tmp_path / "a"), str(tmp_path / "b"))


# --- Images: folders without labels ---


def test_every_image_below_the_folder(tmp_path):
    put(tmp_path, "b.png", "a/z.JPG", "a/deep/1.webp", "c.jpeg")
    put(tmp_path, ".hidden.png", ".git/x.png", "__MACOSX/x.png", "a/.b.png", "a/__MACOSX/y.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = Images(str(tmp_path))
    assert data.file_names == ["a/deep/1.webp", "a/z.JPG", "b.png", "c.jpeg"]
    assert data.keys == () and data.classes == {} and data.image_ids == [0, 1, 2, 3]
    assert len(data) == 4 and [sample.image_id for sample in data] == [0, 1, 2, 3]
    sample = data[-1]
    assert sample.image_id == 3 and sample.size == sample.orig_size == (4, 6)
    assert sample.image.tolist() == [[[50] * 6] * 4] * 3
    assert set(sample.target()) == {"image_id", "size", "orig_size"}
    assert data.image_path(1) == tmp_path / "a" / "z.JPG"
    with pytest.raises(IndexError):
        data[4]


def test_images_are_turned_upright_unless_exif_is_ignored(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert Images(str(tmp_path))[0].size == (6, 4)
    assert Images(str(tmp_path), exif="ignore")[0].size == (4, 6)


def test_faults(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Images(str(tmp_path / "none"))
    with pytest.raises(DataError, match="has no images"):
        Images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"corrupt")
    data = Images(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.png"):
        data[0]


def test_a_config_finds_it():
    assert components("datasets")["Images"] is Images


def test_files_that_are_skipped_are_counted_also_without_classes(tmp_path):
    for name in ("a.png", "deep/b.jpg", "notes.txt", "deep/c.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = Images(str(tmp_path))
    assert data.file_names == ["a.png", "deep/b.jpg"]
    messages = [found.message for found in data.findings()]
    assert messages == ["notes.txt has no image suffix", "deep/c.raw has no image suffix"]
    assert dataset_summary(data)["dropped"] == {"other-file": 2}


@pytest.mark.parametrize("task", ["classification", "autoencoder"])
def test_images_for_a_folder_of_images_are_answered_with_root(task, tmp_path):
    """`images=` makes the data an IDX file."""
    config = load_config(task, [f"data.train.images={tmp_path}", "data.val=null"])
    with pytest.raises(DataError, match=r"is a folder; give a file, or a folder .* as `root` inst"):
        build("datasets", config.data["main"].train)


@pytest.mark.parametrize("boxes", [False, True])
def test_objects_are_counted_where_there_are_boxes(boxes, tmp_path):
    """A file of image classes alone has none to count; one that could have some has zero."""
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8, "class_id": [0]}
    content = {"images": [image], "annotations": [], "image_classes": ["cat"]}
    content["categories"] = [{"id": 1, "name": "ox"}] * boxes
    (tmp_path / "a.json").write_text(json.dumps(content))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = Coco(str(tmp_path), str(tmp_path / "a.json"))
    summary = {"sources": {"main": {"train": dataset_summary(data)}}}
    expected = "data.train: 1 image" + ", 0 objects" * boxes
    assert summary_lines(summary) == [expected]
