"""The size of a picture from its header, in place of the picture where nothing else is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from visionkit.data.files import diagnose
from visionkit.data.images import FORMATS, Fitted
from visionkit.errors import DataError

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and what it says of such a one


def load_shape(path: str | Path, *, exif: Literal["apply", "ignore"] = "apply") -> Fitted:
    """Called like `load_image`, for data sets that use nothing but the shape. DataError if the
    file is no picture."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = exif == "apply" and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
            if turned and image.format != "TIFF":  # whose size Pillow gives upright
                width, height = height, width
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise DataError(f"picture {path} {diagnose(path)} [{error}]") from error
    return Fitted(torch.zeros(3, 1, 1, dtype=torch.uint8), (3, height, width))
