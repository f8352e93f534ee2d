"""What the loader asks of a decoder, and which one it gets."""

import functools
import logging
import os
from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from imagestream.decode import pillow
from imagestream.decode.build import HOW_TO
from imagestream.decode.crops import View
from imagestream.decode.native.decoder import NativeDecoder, ResizeIn
from imagestream.decode.native.library import NotBuiltError

log = logging.getLogger(__name__)


class DecoderError(ValueError):
    """The decoder that is asked for is not to be had here; the message names the setting and what to do."""


class Decoder(Protocol):
    """What the loader needs of a decoder; it can be pickled."""

    @property
    def name(self) -> str:
        """What decides the pixels: equal names, equal pixels."""

    @property
    def version(self) -> str:
        """The name with the versions of the libraries, for the record."""

    def image_sizes(self, jpegs: Sequence[bytes]) -> list[tuple[int, int]]:
        """Return (width, height) in px of each, from the headers; raises DecodeError."""

    def decode_batch(
        self,
        jpegs: Sequence[bytes],
        views: Sequence[View],
        size: int,
        *,
        bounded: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode, cut, resize and mirror; see `imagestream.decode.pillow.decode_batch`."""


def open_decoder(wanted: Literal["auto", "native", "pillow"], *, resize_in: ResizeIn = "rgb") -> Decoder:
    """Return the decoder that these settings stand for on this machine.

    Raises:
        DecoderError: what is asked for is not built, or Pillow cannot do it.
    """
    if wanted != "pillow":
        try:
            return NativeDecoder(resize_in=resize_in)
        except NotBuiltError as error:
            if wanted == "native":
                raise DecoderError(f"decoder: {error}") from error
            if resize_in == "rgb":
                _warn_of_pillow(str(error))
    if resize_in != "rgb":
        raise DecoderError(
            f"resize_in: {resize_in} needs the native decoder, and decoder: {wanted} means Pillow here; "
            + ("set decoder=native" if wanted == "pillow" else HOW_TO)
        )
    return pillow.PillowDecoder()


@functools.cache
def _warn_of_pillow(why: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        log.warning("decoding with Pillow, which is slower: %s", why)
