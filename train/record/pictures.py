"""Small pictures of what the network sees, on their way from a batch to the run's page."""

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

THUMBNAIL_PX = 112
JPEG_QUALITY = 80
CROPS = 24  # of the mosaic


def thumbnails(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 (B, 3, h, w), RGB, with edges of at most about THUMBNAIL_PX, on the images' own device.

    Args:
        images: float (B, 3, H, W), normalised by `mean` and `std`, which are on the scale of 0 to 255.
    """
    factor = max(1, round(max(images.shape[-2:]) / THUMBNAIL_PX))
    small = nn.functional.avg_pool2d(images.float(), factor)
    scale, shift = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (std, mean))
    return (small * scale + shift).round().clamp(0, 255).to(torch.uint8)


def as_data_uris(pictures: Tensor) -> list[str]:
    """Return uint8 pictures (B, 3, h, w) as JPEGs that a page can hold."""
    return [_as_data_uri(picture) for picture in pictures.permute(0, 2, 3, 1).cpu()]


def _as_data_uri(picture: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.contiguous().numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


class TrainingCrops:
    """Crops of the epoch's first batch on the first rank, after all that changes and mixes them.

    They are those of the epoch's first batch, also in a run that was resumed in the middle of it. So a run that was
    killed has the same ones as an undisturbed one.
    """

    def __init__(self) -> None:
        self.batch = -1  # that they are of
        self.image_px = 0
        self._uris: list[str] = []
        self._taken: list[Tensor] = []

    def take(self, images: Tensor, mean: Sequence[float], std: Sequence[float], *, batch: int, is_first: bool) -> None:
        """Take what is still wanted of a forward pass; nothing waits for the device.

        Args:
            images: of one forward pass, float (B, 3, H, W).
            is_first: whether this is the epoch's first batch.
        """
        if batch != self.batch and not (is_first or self.batch < 0):
            return
        if batch != self.batch:
            self.batch, self.image_px, self._taken = batch, int(images.shape[-1]), []
        wanted = CROPS - sum(map(len, self._taken))
        if wanted > 0:
            self._taken.append(thumbnails(images.detach()[:wanted], mean, std))

    def state(self) -> dict[str, object]:
        """Return the batch, its images' edge, px, and the pictures as data URIs."""
        if self._taken:
            self._uris, self._taken = as_data_uris(torch.cat(self._taken)), []
        return {"batch": self.batch, "image_px": self.image_px, "pictures": list(self._uris)}

    def load(self, batch: int, image_px: int, pictures: list[str]) -> None:
        """Go on with the pictures of a checkpoint."""
        self.batch, self.image_px, self._uris, self._taken = batch, image_px, list(pictures), []
