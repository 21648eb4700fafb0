"""Search by image: for each query the images of a gallery whose vectors are nearest to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from visionkit.data.image_io import read_image
from visionkit.engine.predict import Prediction, Predictor, predict_each
from visionkit.engine.results import find_images, prepare_out
from visionkit.errors import ConfigError, DataError
from visionkit.metrics.values import finite
from visionkit.models.heads.embedding import Embedding
from visionkit.runs.files import to_json, write_text

log = logging.getLogger("visionkit")

ROWS = 20  # queries on the contact sheet
CELL, GAP, FRAME, LINE = 144, 10, 4, 20  # its measures in pixels
QUERY_COLOR, TEXT_COLOR = (214, 39, 40), (40, 40, 40)

Match = tuple[Path, str, float]  # file, name, cosine


def search_files(
    predictor: Predictor,
    queries: Sequence[str | Path],
    gallery: Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 5,
    head: str | None = None,
) -> int:
    """Find the `top` images of the gallery that are nearest to each query; returns how many
    images could not be read.

    Both are images and folders of images. Writes OUT/matches.json, a record for each query
    with its `nearest` images and their `similarity`, the cosine of the vectors (-1 to 1), the
    highest first; and OUT/matches.jpg, a row for each of the first queries. An image is no match
    of itself. A broken image is reported and left out.

    head: which embedding head, where the model has several. ConfigError if there is none, or no
    such one; DataError if no query or nothing of the gallery can be read.
    """
    out, head = Path(out), _embedding_head(predictor, head)
    # Without the other heads, which would only cost time.
    predictor = Predictor(
        predictor.model,
        predictor.config,
        predictor.classes,
        device=predictor.device,
        dtype=predictor.dtype,
        heads=[head],
    )
    if top < 1:
        raise ConfigError(f"top: {top} images for each query; give at least 1")
    asked, offered = _images(queries, out), _images(gallery, out)
    prepare_out(out, [*queries, *gallery], "matches.json")
    files = dict.fromkeys([*asked, *offered])
    vectors = _vectors(predictor, head, files)
    asked = {file: name for file, name in asked.items() if file in vectors}
    offered = {file: name for file, name in offered.items() if file in vectors}
    if not asked or not offered:
        which = "queries" if not asked else "images of the gallery"
        raise DataError(f"search: none of the {which} could be read")

    found = _nearest(vectors, asked, offered, top)
    records = [
        {
            "query": asked[query],
            "nearest": [{"file_name": name, "similarity": cosine} for _, name, cosine in matches],
        }
        for query, matches in found.items()
    ]
    write_text(out / "matches.json", to_json(records) + "\n")
    _sheet(dict(list(found.items())[:ROWS]), asked).save(out / "matches.jpg", quality=90)
    return len(files) - len(vectors)


def _embedding_head(predictor: Predictor, wanted: str | None) -> str:
    heads = predictor.model.heads
    embedding = [name for name in predictor.heads if isinstance(heads[name], Embedding)]
    if wanted in embedding:
        return wanted
    if wanted is None and len(embedding) == 1:
        return embedding[0]
    if not embedding:
        raise ConfigError(
            f"search: the model has no embedding head, only {', '.join(predictor.heads)}; "
            "train one with task: embedding"
        )
    what = "several embedding heads" if wanted is None else f"no embedding head {wanted!r}"
    raise ConfigError(f"search: the model has {what}; name one: {', '.join(embedding)}")


def _images(inputs: Sequence[str | Path], out: Path) -> dict[Path, str]:
    """Each image once, by its file, with its name. Those of an earlier search are left out."""
    files = {file.resolve(): name for file, name in find_images(inputs)}
    return {file: name for file, name in files.items() if out.resolve() not in file.parents}


def _vectors(predictor: Predictor, head: str, files: Iterable[Path]) -> dict[Path, Tensor]:
    """The vector (D,) of each image that can be read."""

    def vector(file: Path, prediction: Prediction) -> Tensor:
        return finite(prediction.heads[head], "embedding", file)

    vectors: dict[Path, Tensor] = {}
    with closing(predict_each(predictor, [*files], vector)) as found:
        for file, result in found:
            if isinstance(result, DataError):
                log.error("skipped: %s", result)
            else:
                vectors[file] = result
    return vectors


def _nearest(
    vectors: dict[Path, Tensor], asked: dict[Path, str], offered: dict[Path, str], top: int
) -> dict[Path, list[Match]]:
    """Of equal cosines, the image that was named first comes first."""
    files = list(offered)
    gallery = F.normalize(torch.stack([vectors[file] for file in files]), dim=1)
    found = {}
    for query in asked:
        cosines = (gallery @ F.normalize(vectors[query], dim=0)).clamp(-1, 1)  # rounding
        ranked = cosines.argsort(descending=True, stable=True)[: top + 1].tolist()
        matches = [(files[i], offered[files[i]], float(cosines[i])) for i in ranked]
        found[query] = [match for match in matches if match[0] != query][:top]
    return found


def _sheet(found: dict[Path, list[Match]], names: dict[Path, str]) -> Image.Image:
    """A row for each query: the query, framed, then what is nearest, with its cosine below."""
    columns = max(map(len, found.values()))
    row, column = CELL + LINE + GAP, CELL + GAP
    first = column + 2 * GAP  # the queries stand apart
    sheet = Image.new("RGB", (first + columns * column + GAP, len(found) * row + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LINE * 0.65)
    pen.line([(column + GAP * 1.5, GAP), (column + GAP * 1.5, sheet.height - GAP)], (200, 200, 200))
    for i, (query, matches) in enumerate(found.items()):
        top = GAP + i * row
        _place(sheet, query, GAP, top)
        corners = [GAP, top, GAP + CELL - 1, top + CELL - 1]
        pen.rectangle(corners, outline=QUERY_COLOR, width=FRAME)
        _caption(pen, font, names[query], GAP, top)
        for k, (file, _, cosine) in enumerate(matches):
            _place(sheet, file, first + k * column, top)
            _caption(pen, font, f"{cosine:.3f}", first + k * column, top)
    return sheet


def _place(sheet: Image.Image, file: Path, left: int, top: int) -> None:
    image = Image.fromarray(read_image(file).permute(1, 2, 0).contiguous().numpy())
    side = CELL - 2 * FRAME
    image = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    spare = [(CELL - extent) // 2 for extent in image.size]
    sheet.paste(image, (left + spare[0], top + spare[1]))


def _caption(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, text: str, left: int, top: int
) -> None:
    while font.getlength(text) > CELL:  # a long path: its end tells more
        text = "…" + text[2:]
    pen.text((left, top + CELL + 2), text, fill=TEXT_COLOR, font=font)
