"""CSV files: the three layouts, how programs write them, what is refused, and round trips."""

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from visionkit.data.datasets import Coco, Csv
from visionkit.data.formats.convert import convert
from visionkit.errors import ArgumentError, ConfigError, DataError


def images(folder, *names, size=(20, 10)):
    for name in names or ("a.jpg", "b.jpg", "deep/c.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 8, 7)).save(path)


def table(folder, text, encoding="utf-8"):
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def refused(folder, text, **options):
    with pytest.raises(DataError) as caught:
        Csv(table(folder, text), **options)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    images(tmp_path)
    return tmp_path


# --- One class of an image -----------------------------------------------------------------------


def test_one_class_of_each_image(folder):
    data = Csv(table(folder, "file,label\nb.jpg,dog\na.jpg,cat\ndeep/c.png,dog\n"))
    assert data.keys == ("class_id", "identity") and not data.multilabel
    assert data.classes["class_id"].names == ("cat", "dog")
    assert data.file_names == ["b.jpg", "a.jpg", "deep/c.png"]
    assert [one.class_id for one in data] == [1, 0, 1]
    assert data.identities.tolist() == [1, 0, 1]
    assert data.class_counts()["class_id"].tolist() == [1, 2]
    assert data[0].orig_size == (10, 20) and data[0].boxes is None


def test_numbers_are_sorted_by_value_and_may_have_names(folder):
    path = table(folder, "image,class\na.jpg,10\nb.jpg,2\n")
    assert Csv(path).classes["class_id"].names == ("2", "10")
    path = table(folder, "image,class\na.jpg,1\nb.jpg,ant\n")
    data = Csv(path, names=["ant", "bee", "fly"])
    assert data.classes["class_id"].names == ("ant", "bee", "fly")
    assert [one.class_id for one in data] == [1, 0]


def test_an_image_of_two_classes_points_to_columns_of_classes(folder):
    message = refused(folder, "file,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\nb.jpg,dog\n")
    assert "labels.csv:4: 'a.jpg' has the class 'dog', but in line 2 it is 'cat'" in message
    assert "one column for each class: file,cat,dog with 1 and 0" in message


def test_a_repeated_row_is_a_printed_loss(folder):
    path = table(folder, "file,label\na.jpg,cat\nb.jpg,dog\na.jpg,cat\n")
    done = convert(path, folder / "out.json", format="csv")
    assert done.losses == [
        {"kind": "rows that repeat an image and its class", "count": 1, "first": ["labels.csv:4"]}
    ]


# --- Several classes -----------------------------------------------------------------------------


def test_a_column_for_each_class(folder):
    data = Csv(table(folder, "file,cat,dog\na.jpg,1,0\nb.jpg,,1\ndeep/c.png,-1,0\n"))
    assert data.multilabel and data.classes["class_id"].names == ("cat", "dog")
    first, second, third = (one.class_id for one in data)
    assert first == [1, 0]
    assert math.isnan(second[0]) and second[1] == 1
    assert math.isnan(third[0]) and third[1] == 0
    assert data.class_counts()["class_id"].tolist() == [1, 1]


def test_wrong_values_and_repeated_images_are_listed(folder):
    text = "file,cat,dog\na.jpg,1,2\nb.jpg,maybe,yes?\nb.jpg,1,0\nb.jpg,1,1\n"
    message = refused(folder, text)
    assert "labels.csv:2: column 'dog' is '2': must be 1, 0, or -1 or nothing" in message
    assert "labels.csv:3: column 'cat' is 'maybe', and 1 more column" in message
    assert "labels.csv:5: 'b.jpg' has other values in line 4" in message


# --- Boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header, row",
    [
        ("filename,xmin,ymin,xmax,ymax,class", "a.jpg,1,2,4,8,cat"),
        ("Class,X1,Y1,X2,Y2,Path", "cat,1,2,4,8,a.jpg"),
        ("image_id,label,x,y,width,height", "a,cat,1,2,3,6"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.jpg,20,10,cat,1,2,4,8"),
        ("img path,XMin,XMax,YMin,YMax,LabelName", "a.jpg,1,4,2,8,cat"),
        ("image,bbox_x,bbox_y,bbox_w,bbox_h,category", "a.jpg,1,2,3,6,cat"),
    ],
)
def test_columns_of_boxes_are_known_by_their_names(folder, header, row):
    data = Csv(table(folder, f"{header}\n{row}\n"))
    assert data.keys == ("boxes", "labels", "iscrowd", "area")
    assert data[0].boxes.tolist() == [[1, 2, 4, 8]] and data[0].area.tolist() == [18]
    assert data.classes["labels"].names == ("cat",) and data.file_names == ["a.jpg"]


def test_images_without_objects_and_crowds(folder):
    text = "file,label,xmin,ymin,xmax,ymax,iscrowd\na.jpg,dog,0,0,5,5,1\nb.jpg,,,,,,\n"
    data = Csv(table(folder, text + "a.jpg,cat,1,1,3,3,0\n"))
    assert data.classes["labels"].names == ("cat", "dog")
    assert data[0].labels.tolist() == [1, 0] and data[0].iscrowd.tolist() == [True, False]
    assert len(data[1].boxes) == 0


def test_all_bad_rows_are_listed_with_their_lines(folder):
    rows = [
        "a.jpg,cat,1,2,3,x",
        "a.jpg,cat,5,2,3,4",
        "a.jpg,,1,2,3,4",
        ",cat,1,2,3,4",
        "a.jpg,cat,1,2,3",
        "gone.jpg,cat,1,2,3,4",
        "../a.jpg,cat,1,2,3,4",
        "a.jpg,cat,nan,2,inf,4",
        'a.jpg,"cat,1,2,3,4',
    ]
    message = refused(folder, "file,label,xmin,ymin,xmax,ymax\n" + "\n".join(rows) + "\n")
    for line, what in enumerate(
        [
            "ymax is 'x': must be a number",
            "xmax 3 is less than xmin 5",
            "no class is named",
            "no image is named",
            "has 5 cells, but the header has 6",
            "the image 'gone.jpg' is not in",
            "the file name '../a.jpg' leaves its folder",
            "xmin is 'nan': must be a number; xmax is 'inf': must be a number",
            "cannot be read: unexpected end of data; is a quote not closed?",
        ],
        2,
    ):
        assert f"labels.csv:{line}: {what}" in message, what
    assert "9 problems" in message


def test_the_first_twenty_are_shown_and_all_can_be_dropped(folder):
    rows = "".join(f"a.jpg,cat,{i},2,3,x\n" for i in range(30)) + "a.jpg,cat,1,2,3,4\n"
    message = refused(folder, "file,label,xmin,ymin,xmax,ymax\n" + rows)
    assert "30 problems" in message and "labels.csv:21:" in message and "10 more" in message
    done = convert(folder / "labels.csv", folder / "o.json", format="csv", skip_bad=True)
    assert done.objects == 1 and done.dropped == {"value": 30}


def test_boxes_in_parts_of_the_image_are_refused(folder):
    rows = "a.jpg,cat,0.1,0.2,0.5,1\nb.jpg,cat,0,0,1,1\n"
    message = refused(folder, "file,label,xmin,ymin,xmax,ymax\n" + rows)
    assert "all coordinates lie within 0..1: write pixels: multiply x by the width" in message


def test_sizes_that_differ_are_refused(folder):
    header = "file,image_width,image_height,label,x,y,width,height\n"
    message = refused(folder, header + "a.jpg,21,10,cat,1,2,3,4\nb.jpg,20,10,cat,1,2,3,4\n")
    assert "labels.csv:2: the size is 21x10, but the image 'a.jpg' has 20x10" in message
    rows = "a.jpg,20,10,cat,1,2,3,4\na.jpg,20,11,cat,1,2,3,4\nb.jpg,0,1,cat,1,2,3,4\n"
    message = refused(folder, header + rows)
    assert "labels.csv:3: the size of the image is 20x11, before 20x10" in message
    assert "labels.csv:4: the size of the image is '0x1': must be integers" in message


# --- Files as programs write them ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("file;label;x;y;width;height\na.jpg;Grün;1,5;2;3;6,25\n", "utf-8-sig"),
        ("file\tlabel\tx\ty\twidth\theight\r\na.jpg\tGrün\t1.5\t2\t3\t6.25\r\n", "utf-16"),
        ("file\tlabel\tx\ty\twidth\theight\r\na.jpg\tGrün\t1.5\t2\t3\t6.25\r\n", "utf-16-le"),
        ("file,label,x,y,width,height\r\na.jpg,Grün,1.5,2,3,6.25\r\n", "latin-1"),
        ('"file","label","x","y","width","height"\r"a.jpg","Grün","1.5","2","3","6.25"', "utf-8"),
        ("sep=;\nfile;label;x;y;width;height;\n\n.\\a.jpg; Grün ;1.5;2;3;6.25;\n\n", "utf-8"),
        ("file,label,x,y,width,height\nA.JPG,Grün,1.5,2,3,6.25\n", "cp1252"),
    ],
)
def test_separators_encodings_quotes_and_capitals(folder, text, encoding):
    data = Csv(table(folder, text, encoding))
    assert data.classes["labels"].names == ("Grün",) and data.file_names == ["a.jpg"]
    assert data[0].boxes.tolist() == [[1.5, 2, 4.5, 8.25]]


def test_lines_are_counted_in_quoted_cells_and_after_a_stated_separator(folder):
    message = refused(folder, 'sep=,\nfile,label\na.jpg,"two\nlines"\nb.jpg,\n')
    assert "labels.csv:5: no class is named" in message


def test_images_are_found_in_a_folder_of_that_name_and_without_suffix(tmp_path):
    images(tmp_path / "images", "1.5.png", "b.jpg")
    data = Csv(table(tmp_path, "id,image,label\n1,1.5,cat\n2,b,dog\n"))
    assert data.images == tmp_path / "images" and data.file_names == ["1.5.png", "b.jpg"]
    path = str(tmp_path / "images" / "b.jpg")
    text = f"file,label\nimages/1.5.png,cat\n{path},dog\n"
    assert Csv(table(tmp_path, text)).file_names == ["images/1.5.png", "images/b.jpg"]
    data = Csv(table(tmp_path, text), images=tmp_path / "images")
    assert data.file_names == ["1.5.png", "b.jpg"]
    data = Csv(table(tmp_path, "file,label\nC:\\data\\b.jpg,cat\n"))
    assert data.file_names == ["b.jpg"]


def test_a_column_of_splits(folder):
    path = table(folder, "file,label,split\na.jpg,cat,train\nb.jpg,dog,val\n")
    assert Csv(path, split="val").file_names == ["b.jpg"]
    assert len(Csv(path)) == 2
    with pytest.raises(DataError, match="no images"):
        Csv(path, split="test")
    with pytest.raises(DataError, match="there is no column `split`"):
        Csv(table(folder, "file,label\na.jpg,cat\n"), split="val")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("a.jpg,cat\nb.jpg,dog\n", "but not the images: name that column `file`"),
        ("file\na.jpg\n", "there are no columns of classes"),
        ("file,cat,cat\na.jpg,1,1\n", "cat is there twice"),
        ("file,cat,\na.jpg,1,1\n", "a column has no name"),
        ("file,label,xmin,ymin\na.jpg,cat,1,2\n", "has xmin, ymin, but not four columns of a box"),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4\n", "but not the classes: name that column `label`"),
        ("file,label\n", "no images"),
        ("file,label\nx.jpg,cat\n", "labels.csv:2: the image 'x.jpg' is not in"),
        ("file,label\na.jpg,cat\na.png,cat\n", "'a.png' and 'a.jpg' are the same image, 'a.jpg'"),
        ("file\0,label\n", "it has zero bytes"),
    ],
)
def test_what_cannot_be_used(folder, text, message):
    assert message in refused(folder, text)


def test_a_link_that_leads_out_is_refused(tmp_path):
    images(tmp_path, "out/a.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").symlink_to(tmp_path / "out" / "a.jpg")
    assert "leads out" in refused(tmp_path / "in", "file,label\na.jpg,cat\n")
    assert len(Csv(tmp_path / "in" / "labels.csv", links="any")) == 1


# --- Round trips ---------------------------------------------------------------------------------


def objects(folder):
    """A COCO file with sparse ids, a crowd, a mask and decimals that add up inexactly."""
    records = [
        {"id": 7, "image_id": 4, "category_id": 90, "bbox": [473.07, 395.93, 38.65, 28.67],
         "area": 1, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]},
        {"id": 900100000581, "image_id": 4, "category_id": 3, "bbox": [0.1, 0.2, 0.3, 7],
         "area": 2.1, "iscrowd": 1},
    ]  # fmt: skip
    data = {
        "images": [
            {"id": 4, "file_name": "deep/a.jpg", "width": 640, "height": 480},
            {"id": 9, "file_name": "b, c.jpg", "width": 64, "height": 48, "license": 3},
        ],
        "annotations": records,
        "categories": [{"id": 90, "name": 'a "cat"'}, {"id": 3, "name": "dog; ox"},
                       {"id": 5, "name": "unused"}],
    }  # fmt: skip
    (folder / "gt.json").write_text(json.dumps(data))
    return data


def test_boxes_are_the_same_after_a_round_trip(tmp_path):
    data = objects(tmp_path)
    done = convert(tmp_path / "gt.json", tmp_path / "csv", to="csv")
    assert {one["kind"]: one["count"] for one in done.losses} == {
        "masks, of which the box is kept": 1,
        "image records with other keys (license)": 1,
        "classes without objects": 1,
    }
    convert(tmp_path / "gt.json", tmp_path / "again", to="csv")
    first = (tmp_path / "csv" / "boxes.csv").read_bytes()
    assert first == (tmp_path / "again" / "boxes.csv").read_bytes()
    assert next(csv.reader(first.decode().splitlines()))[:4] == [
        *("file", "image_width", "image_height", "label"),
    ]
    back = convert(tmp_path / "csv", tmp_path / "back.json", format="csv")
    assert back.losses == [] and back.objects == 2
    read = json.loads((tmp_path / "back.json").read_text())
    assert [
        {k: one[k] for k in ("id", "file_name", "width", "height")} for one in data["images"]
    ] == read["images"]
    names = {one["id"]: one["name"] for one in data["categories"]}
    found = {one["id"]: one["name"] for one in read["categories"]}
    for one, other in zip(data["annotations"], read["annotations"], strict=True):
        assert all(one[key] == other[key] for key in ("id", "image_id", "bbox", "iscrowd"))
        assert names[one["category_id"]] == found[other["category_id"]]


def test_classes_of_images_are_the_same_after_a_round_trip(folder):
    for text in (
        "file,label\na.jpg,cat\nb.jpg,dog\n",
        "file,cat,dog\na.jpg,1,0\nb.jpg,,1\ndeep/c.png,0,0\n",
    ):
        out = folder / f"out{len(text)}"
        convert(table(folder, text), f"{out}.json", format="csv")
        done = convert(f"{out}.json", out, to="csv")
        assert (out / "labels.csv").read_text() == text and done.losses == []
        assert [*out.iterdir()] == [out / "labels.csv"]
        one, other = Csv(folder / "labels.csv"), Coco(folder, f"{out}.json")
        for a, b in zip(one, other, strict=True):
            np.testing.assert_equal(a.class_id, b.class_id)


def test_what_cannot_be_written(tmp_path):
    objects(tmp_path)
    with pytest.raises(ArgumentError, match="makes a folder"):
        convert(tmp_path / "gt.json", tmp_path / "x.csv", to="csv")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="already exists"):
        convert(tmp_path / "gt.json", tmp_path / "there", to="csv")
    images(tmp_path / "in", "a.jpg")
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10, "class_id": [0]}],
        "annotations": [], "categories": [], "image_classes": ["label", "x"],
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="the name of another column"):
        convert(tmp_path / "m.json", tmp_path / "m", to="csv")
    assert not (tmp_path / "m").exists()
    assert not re.findall("tmp", " ".join(path.name for path in tmp_path.iterdir()))


def test_real_boxes_are_the_same_after_a_round_trip(real_data, tmp_path):
    source = real_data / "coco_mini" / "annotations" / "instances_val2017.json"
    done = convert(source, tmp_path / "csv", to="csv")
    assert done.objects == 1121
    back = convert(tmp_path / "csv", tmp_path / "back.json", format="csv")
    assert (back.objects, back.losses) == (1121, [])
    want, got = (json.loads(path.read_text()) for path in (source, tmp_path / "back.json"))
    by_id = {one["id"]: one for one in got["annotations"]}
    for one in want["annotations"]:
        other = by_id[one["id"]]
        assert one["bbox"] == other["bbox"] and one["iscrowd"] == other["iscrowd"]
        assert one["image_id"] == other["image_id"]
