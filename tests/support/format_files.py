"""Folders of labels in several formats, and what their readers make of them."""

import base64
import io
import json

import numpy as np
from PIL import Image

from visionkit.data.formats.convert import convert
from visionkit.data.formats.detect import open_reader


def records(format, source, **options):
    """The reader, and the records of each image by file name."""
    reader = open_reader(format, source, **options)
    return reader, {image["file_name"]: (image, own) for image, own in reader.records()}


def names(reader):
    return [each["name"] for each in reader.categories]


def image(path, size=(40, 30)):
    """A gray image of that width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 90).save(path)


def to_coco(format, source, out, **options):
    """What `convert` writes, decoded."""
    convert(source, out, format=format, **options)
    return json.loads(out.read_text())


def png(bitmap):
    """A mask in base64, as LabelMe writes it."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(bitmap, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def objects(name, box, more=""):
    """An object of Pascal VOC."""
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox>{more}</object>\n"


def voc(path, objects="", *, filename=None, size=(40, 30), head=""):
    """A file of Pascal VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{path.stem}.png" if filename is None else filename
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    text = f"{head}<annotation><filename>{name}</filename>{size}\n{objects}</annotation>"
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def labelme(path, shapes, *, filename=None, size=(40, 30), **more):
    """A file of LabelMe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{path.stem}.png" if filename is None else filename
    content = {
        "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None,
        "imageHeight": size[1], "imageWidth": size[0], **more,
    }  # fmt: skip
    path.write_text(json.dumps(content))


def shape(label, points, kind="polygon", **more):
    """A shape of LabelMe."""
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


def cvat(path, images):
    """A file of CVAT with these images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotations><version>1.1</version>\n{images}</annotations>")
