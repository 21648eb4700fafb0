"""Image retrieval: the images of a gallery with the nearest embeddings for each query image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from visionkit.engine.predict import Prediction, Predictor, find_images, predict_each
from visionkit.engine.results import results_folder
from visionkit.errors import ConfigError, DataError, printable
from visionkit.metrics.accuracy import finite
from visionkit.models.heads.embedding import Embedding
from visionkit.runs.files import to_json, write_text
from visionkit.visualization.draw import as_image, contact_sheet, save_image

log = logging.getLogger("visionkit")

ROWS = 20  # queries on the contact sheet
CELL, FRAME, LINE = 144, 4, 20  # its sizes in pixels
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
    with its `nearest` images and their `similarity`, the cosine of the embeddings (-1 to 1), in
    descending order; and OUT/matches.jpg, a row for each of the first queries. An image does not
    match itself. An unreadable image is reported and skipped.

    head: the embedding head, where the model has several. Raises ConfigError if there is none or
    it is unknown; DataError if no query or no image of the gallery can be read.
    """
    out, head = Path(out), _embedding_head(predictor, head)
    predictor = copy(predictor)
    predictor.heads = [head]  # the others would only cost time
    if top < 1:
        raise ConfigError(f"top: got {top}; expected at least 1 image for each query")
    asked, offered = _images(queries, out), _images(gallery, out)
    with results_folder(out, [*queries, *gallery], "matches.json"):
        files = dict.fromkeys([*asked, *offered])
        vectors = _embeddings(predictor, head, files)
        asked = {file: name for file, name in asked.items() if file in vectors}
        offered = {file: name for file, name in offered.items() if file in vectors}
        if not asked or not offered:
            which = "queries" if not asked else "images of the gallery"
            raise DataError(f"search: none of the {which} could be read")

        found = _nearest(vectors, asked, offered, top)
        records = [
            {
                "query": asked[query],
                "nearest": [
                    {"file_name": name, "similarity": cosine} for _, name, cosine in matches
                ],
            }
            for query, matches in found.items()
        ]
        write_text(out / "matches.json", to_json(records) + "\n")
        sheet = _sheet(predictor, dict(list(found.items())[:ROWS]), asked)
        save_image(sheet, out / "matches.jpg", quality=90)
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
    raise ConfigError(f"search: the model has {what}; choose one: {', '.join(embedding)}")


def _images(inputs: Sequence[str | Path], out: Path) -> dict[Path, str]:
    """Each image once, by file, with its name; without the sheet of an earlier search."""
    files = {file.resolve(): name for file, name in find_images(inputs)}
    return {file: name for file, name in files.items() if out.resolve() not in file.parents}


def _embeddings(predictor: Predictor, head: str, files: Iterable[Path]) -> dict[Path, Tensor]:
    """The embedding (D,) of each image that can be read."""

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
    """Of equal cosines, the image that was given first comes first."""
    files = list(offered)
    gallery = F.normalize(torch.stack([vectors[file] for file in files]), dim=1)
    found = {}
    for query in asked:
        cosines = (gallery @ F.normalize(vectors[query], dim=0)).clamp(-1, 1)  # rounding
        ranked = cosines.argsort(descending=True, stable=True)[: top + 1].tolist()
        matches = [(files[i], offered[files[i]], float(cosines[i])) for i in ranked]
        found[query] = [match for match in matches if match[0] != query][:top]
    return found


def _sheet(
    predictor: Predictor, found: dict[Path, list[Match]], names: dict[Path, str]
) -> Image.Image:
    """A row for each query: the query, framed, then its nearest images with their cosine."""
    columns = 1 + max(map(len, found.values()))
    cells = []
    for query, matches in found.items():
        row = [_cell(predictor.read(query), names[query], framed=True)]
        row += [_cell(predictor.read(file), f"{cosine:.3f}") for file, _, cosine in matches]
        blank = Image.new("RGB", row[0].size, "white")
        cells += row + [blank] * (columns - len(row))
    return contact_sheet(cells, columns)


def _cell(pixels: Tensor, caption: str, *, framed: bool = False) -> Image.Image:
    """An image of the sheet with its caption below."""
    cell = Image.new("RGB", (CELL, CELL + LINE), "white")
    image = as_image(pixels)
    side = CELL - 2 * FRAME
    image = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(size=LINE * 0.65)
    if framed:
        pen.rectangle([0, 0, CELL - 1, CELL - 1], outline=QUERY_COLOR, width=FRAME)
    caption = printable(caption)
    while font.getlength(caption) > CELL:  # the end of a long path says more
        caption = "…" + caption[2:]
    pen.text((0, CELL + 2), caption, fill=TEXT_COLOR, font=font)
    return cell
