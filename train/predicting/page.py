"""A page of predictions: pictures, each with what the network sees in it. One file, which loads nothing."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from PIL import Image

from imagestream.mds.names import utf8
from imagestream.storage.places import folder_and_name, open_place
from train.predicting.model import PredictingModel
from train.predicting.results import Prediction

SHOWN = 500  # images, so that the page stays below 10 MB
EDGE_PX = 144
QUALITY = 80


class Page:
    """Collects the first images, and writes the page at the end.

    Args:
        location: of the file, local or s3://.

    Raises:
        PlaceError: it cannot be written.
    """

    def __init__(self, location: str, model: PredictingModel) -> None:
        where, self._name = folder_and_name(location)
        self._folder, self._model = open_place(where), model
        self._folder.check_writable()
        self._rows: list[dict[str, Any]] = []
        self._count = 0

    def add(self, predictions: Sequence[Prediction], images: torch.Tensor) -> None:
        """Take more images: uint8 (B, H, W, 3), as the network sees them."""
        self._count += len(predictions)
        for prediction, image in zip(predictions, images, strict=True):
            if len(self._rows) == SHOWN:
                return
            ranked = list(zip(prediction.classes, prediction.probabilities, strict=True))
            picture = None if prediction.error else _data_uri(image)
            self._rows.append(
                {"path": prediction.path, "ranked": ranked, "error": prediction.error, "picture": picture}
            )

    def finish(self) -> None:
        """Write the page."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("train.predicting", "."), autoescape=True, undefined=jinja2.StrictUndefined
        )
        text = environment.get_template("page.html.j2").render(
            model=self._model.shown, rows=self._rows, count=self._count, edge_px=EDGE_PX
        )
        self._folder.write(self._name, utf8(text))


def _data_uri(image: torch.Tensor) -> str:
    picture = Image.fromarray(image.numpy())
    picture.thumbnail((2 * EDGE_PX, 2 * EDGE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
