"""What the converter keeps the trainer decodes, and what it refuses the trainer could not."""

from collections.abc import Iterable, Iterator
from itertools import islice, product

import pytest

from convert import images
from convert.images import check_image
from convert.jpeg_header import read_frame
from imagestream.decode import pillow
from imagestream.decode.backends import Decoder
from imagestream.decode.crops import View
from imagestream.decode.native import library
from imagestream.decode.native.decoder import NativeDecoder
from imagestream.decode.pillow import DecodeError
from imagestream.decode.rgb import BadImage
from tests.jpegs import lossless_jpeg, written_by_hand

FACTORS: tuple[tuple[int, int], ...] = tuple((x, y) for x, y in product((1, 2, 3, 4), repeat=2))
FRAME_MARKERS = [marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)]
PART = 37  # of the samplings each test run takes one in so many; a prime, so that every factor is among them

Factors = tuple[tuple[int, int], ...]


def is_kept(data: bytes) -> bool:
    """The converter's verdict, which must be the same without the native check."""
    verdicts = set()
    for has_native in {library.is_built(), False}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "_HAS_NATIVE_CHECK", has_native)
            try:
                check_image(data)
                verdicts.add(True)
            except BadImage:
                verdicts.add(False)
    assert len(verdicts) == 1, "the native check has changed the verdict"
    return verdicts.pop()


def is_decoded(data: bytes) -> bool:
    """Whether the trainer makes pixels of it: of the whole and of a crop, and both decoders alike."""
    outcomes = set()
    decoders: list[Decoder] = [pillow.PillowDecoder(), *([NativeDecoder()] if library.is_built() else [])]
    for decoder in decoders:
        try:
            width, height = decoder.image_sizes([data])[0]
            crop = (width // 3, height // 3, width // 3 + 9, height // 3 + 9)
            views = [View((0, 0, width, height), False), View(crop, True)]
            decoder.decode_batch([data, data], views, 16, bounded=True)
            outcomes.add(True)
        except DecodeError:
            outcomes.add(False)
    assert len(outcomes) == 1, "one of the trainer's decoders refuses it, the other does not"
    return outcomes.pop()


def disagreements(cases: Iterable[tuple[object, bytes]]) -> list[tuple[object, bool, bool]]:
    found = ((case, is_kept(data), is_decoded(data)) for case, data in cases)
    return [(case, kept, decoded) for case, kept, decoded in found if kept != decoded]


def samplings(marker: int, start: int, step: int) -> Iterator[tuple[Factors, bytes]]:
    for factors in islice(product(FACTORS, repeat=3), start, None, step):
        yield factors, written_by_hand(45, 39, factors, marker=marker)


def test_some_samplings_are_kept_and_some_refused() -> None:
    assert is_kept(written_by_hand(45, 39)) and is_decoded(written_by_hand(45, 39))
    for factors in (((3, 1), (2, 1), (1, 1)), ((1, 3), (1, 2), (1, 1)), ((4, 1), (3, 1), (1, 1))):
        data = written_by_hand(45, 39, factors)
        with pytest.raises(BadImage, match=r"chroma sampling .x., .x., 1x1, of which libjpeg makes no colours"):
            check_image(data)
        assert not is_decoded(data)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_check_and_decode_agree_on_some_samplings(marker: int) -> None:
    assert not disagreements(samplings(marker, marker % 3, PART))


@pytest.mark.exhaustive
@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_check_and_decode_agree_on_every_sampling(marker: int) -> None:
    assert not disagreements(samplings(marker, 0, 1))


@pytest.mark.parametrize("marker", FRAME_MARKERS)
def test_check_and_decode_agree_on_every_process(marker: int) -> None:
    one, three = ((1, 1),), ((2, 2), (1, 1), (1, 1))
    cases = [
        (factors, written_by_hand(45, 39, factors, marker=marker, quantization=[0] * n, huffman=[0] * n))
        for factors, n in ((one, 1), (three, 3))
    ]
    if marker != 0xC3:  # of which the converter makes another JPEG
        assert not disagreements(cases)
    for _, data in cases:
        frame = read_frame(data)
        assert frame is not None and frame.marker == marker


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_check_and_decode_agree_on_every_table_number(marker: int) -> None:
    cases = [
        ((quantization, huffman), written_by_hand(30, 20, marker=marker, quantization=quantization, huffman=huffman))
        for quantization, huffman in zip(
            product(range(5), repeat=3), reversed(list(product(range(5), repeat=3))), strict=True
        )
    ]
    assert not disagreements(cases)


def test_a_lossless_jpeg_is_re_encoded_without_asking_libjpeg_for_a_smaller_scale() -> None:
    checked = check_image(lossless_jpeg(640, 480))
    assert checked.mended == "lossless (SOF3) JPEG re-encoded as RGB, quality 95"
    assert is_decoded(checked.data)
    assert not library.is_built() or not library.is_sound(lossless_jpeg(640, 480))
