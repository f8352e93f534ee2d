"""The native decoder: Pillow's pixels, on any instructions, and Pillow's verdict on what is damaged."""

import io
import itertools
import os
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from imagestream.decode import backends, pillow
from imagestream.decode.backends import Decoder, DecoderError, open_decoder
from imagestream.decode.build import compile_sources
from imagestream.decode.crops import View, center_view, random_resized_crop, sample_draws
from imagestream.decode.native import library
from imagestream.decode.native.decoder import AUTO, AVX2, AVX512, PORTABLE, NativeDecoder, ResizeIn
from imagestream.decode.pillow import DecodeError
from tests.jpegs import SAMPLINGS, jpeg, photo
from tests.unit.test_convert_fuzz import mutants

REQUIRED = os.environ.get("REQUIRE_NATIVE_DECODER") == "1"
needs_native = pytest.mark.skipif(
    not library.is_built() and not REQUIRED, reason="not built: python imagestream/decode/build.py"
)
EMULATION = Path(__file__).parents[1] / "emulated/x86.h"
HAS_SIMDE = Path("/usr/include/simde/x86/avx512.h").exists()
SHAPES = [(1, 1), (2, 3), (7, 9), (16, 16), (17, 33), (64, 48), (101, 75), (250, 187), (5, 300), (300, 5)]


def boxes(width: int, height: int, count: int, seed: int) -> list[View]:
    """Crops as in training, and at the extremes: everything, one pixel, one column, one row, the corners."""
    rng = random.Random(seed)
    views = [
        random_resized_crop(width, height, rng.random, scale=(0.08, 1.0), ratio=(0.75, 1.3333), flip_prob=0.5)
        for _ in range(count)
    ]
    x, y = rng.randrange(width), rng.randrange(height)
    extremes = [(0, 0, width, height), (x, y, x + 1, y + 1), (x, 0, x + 1, height), (0, y, width, y + 1)]
    extremes += [(0, 0, x + 1, y + 1), (x, y, width, height)]
    return views + [View(box, rng.random() < 0.5) for box in extremes]


def assert_pixels_are_pillows(jpegs: list[bytes], views: list[View], size: int, *, bounded: bool) -> None:
    decoder = NativeDecoder()
    ours = decoder.decode_batch(jpegs, views, size, bounded=bounded)
    reference = pillow.decode_batch(jpegs, views, size, bounded=bounded)
    different = [(index, views[index]) for index in range(len(jpegs)) if not torch.equal(ours[index], reference[index])]
    assert different == []
    assert decoder.left_to_pillow == 0


def test_the_library_is_there_where_it_must_be() -> None:
    assert library.is_built() or not REQUIRED


@pytest.mark.slow
@needs_native
def without_last_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG as a server sends it that stops early: it ends well, and decodes without a word."""
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    begin = data.rindex(b"\xff\xc4", 0, scans[-count])  # the scan's tables come before it
    return data[: max(begin, scans[-count - 1] + 2)] + b"\xff\xd9"


@needs_native
@pytest.mark.parametrize("left_out", [1, 3, 5, 8])
@pytest.mark.parametrize("resize_in", ["rgb", "ycbcr"])
def test_a_progressive_jpeg_that_ends_early_has_pillows_pixels(left_out: int, resize_in: ResizeIn) -> None:
    data = without_last_scans(jpeg(160, 120, "4:2:0", 5, progressive=True, quality=85), left_out)
    decoder = NativeDecoder(resize_in=resize_in)
    boxes: list[tuple[float, float, float, float]] = [
        (51.0, 30.0, 115.0, 94.0),
        (0.0, 0.0, 160.0, 120.0),
        (17.0, 3.0, 60.0, 101.0),
    ]
    views = [View(box, False) for box in boxes]
    for size in (64, 32):
        expected = pillow.decode_batch([data] * 3, views, size, bounded=True)
        assert torch.equal(decoder.decode_batch([data] * 3, views, size, bounded=True), expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_box_of_every_sampling_has_pillows_pixels(sampling: str, progressive: bool) -> None:
    for seed, (width, height) in enumerate(SHAPES):
        data = jpeg(width, height, sampling, seed, progressive=progressive, quality=85)
        views = boxes(width, height, 12, seed)
        for size in (1, 7, 32, 97):
            assert_pixels_are_pillows([data] * len(views), views, size, bounded=True)


@needs_native
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_unbounded_boxes_look_over_their_edges_as_pillows_do(sampling: str) -> None:
    for seed, (width, height) in enumerate(SHAPES):
        data, rng = jpeg(width, height, sampling, seed), random.Random(seed)
        views = [center_view(width, height, resize_size=whole, crop_size=32) for whole in (32, 40, 200)]
        assert all(view.whole for view in views)
        for _ in range(12):
            x, y = sorted(rng.uniform(0, width) for _ in "12"), sorted(rng.uniform(0, height) for _ in "12")
            views.append(View((x[0], y[0], x[1] + 0.001 * (width - x[1]), y[1]), rng.random() < 0.5))
        assert_pixels_are_pillows([data] * len(views), views, 32, bounded=False)


@needs_native
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0"])
def test_bicubic_views_have_pillows_pixels(sampling: str) -> None:
    """Enlarged, shrunk, and of one pixel; sharp edges overshoot, and are clipped."""
    for seed, (width, height) in enumerate([*SHAPES, (500, 375)]):
        data = jpeg(width, height, sampling, seed, quality=95)
        views = [
            view._replace(cubic=seed % 3 > 0 or at % 2 > 0) for at, view in enumerate(boxes(width, height, 12, seed))
        ]
        for size in (1, 7, 32, 97):
            assert_pixels_are_pillows([data] * len(views), views, size, bounded=True)
        whole = [
            center_view(width, height, resize_size=edge, crop_size=32)._replace(cubic=True) for edge in (32, 40, 200)
        ]
        assert_pixels_are_pillows([data] * 3, whole, 32, bounded=False)


RESTARTS = [{"restart_marker_blocks": blocks} for blocks in (1, 2, 3, 5, 8, 17, 40)]


@needs_native
@pytest.mark.parametrize(
    "options", [*RESTARTS, {"restart_marker_rows": 1}, {"optimize": True}, {"quality": 100}], ids=str
)
def test_other_ways_to_write_a_jpeg_make_no_difference(options: dict[str, int]) -> None:
    for sampling in SAMPLINGS:
        views = boxes(120, 90, 10, 1)
        assert_pixels_are_pillows([jpeg(120, 90, sampling, 3, **options)] * len(views), views, 48, bounded=True)


@needs_native
@pytest.mark.parametrize("blocks", [1, 4, 15])
def test_damage_outside_the_crop_changes_nothing_where_there_are_restart_markers(blocks: int) -> None:
    """The image has 15 x 12 MCUs; the codes of its first row are made invalid, and a marker is changed at the end."""
    sound, view = jpeg(240, 192, "4:2:0", 1, restart_marker_blocks=blocks), View((100, 60, 200, 150), True)
    begin, end = sound.index(b"\xff\xda") + 14, sound.index(b"\xff\xd0")
    damaged = sound[:begin] + b"\xfe" * (end - begin) + sound[end:]
    decoder = NativeDecoder()
    ours = decoder.decode_batch([sound, damaged], [view, view], 64, bounded=True)
    assert torch.equal(ours[0], ours[1]) and decoder.left_to_pillow == 0
    assert torch.equal(ours[0], pillow.decode_batch([sound], [view], 64, bounded=True)[0])
    assert library.is_sound(sound) and not library.is_sound(damaged)
    misnumbered = sound.replace(b"\xff\xd0", b"\xff\xd5", 1)
    assert_pixels_are_pillows([misnumbered], [view], 64, bounded=True)
    assert not library.is_sound(misnumbered)


@needs_native
def test_grey_and_rgb_jpegs_have_pillows_pixels() -> None:
    grey, rgb = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo(90, 61)[:, :, 0]).save(grey, "JPEG")
    Image.fromarray(photo(90, 61)).save(rgb, "JPEG", keep_rgb=True)
    views = boxes(90, 61, 10, 2)
    for data in (grey.getvalue(), rgb.getvalue()):
        assert_pixels_are_pillows([data] * len(views), views, 40, bounded=True)


@pytest.mark.slow
@needs_native
def test_an_image_far_larger_than_the_result_has_pillows_pixels() -> None:
    data = jpeg(2500, 1700, "4:2:0", quality=70)
    views = boxes(2500, 1700, 2, 5)
    assert_pixels_are_pillows([data] * len(views), views, 33, bounded=True)


def processor_has(path: int) -> bool:
    try:
        NativeDecoder(path=path).decode_batch([], [], 1, bounded=True)
    except ValueError as error:
        assert "lacks path" in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library with its x86 instructions written out in C, for processors that lack them."""
    if not (HAS_SIMDE or REQUIRED):
        pytest.skip("this processor has no such instructions, and SIMDe (Debian: libsimde-dev) is not there")
    built = tmp_path_factory.mktemp("emulated") / "decode.so"
    compile_sources(built, ("-shared", "-w", "-include", str(EMULATION)))
    return library.load_library(built)


def overflowing(width: int, height: int) -> bytes:
    """White, by tables that make it eight times as bright, which takes more than 16 bits."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "JPEG", qtables=[[16] * 64] * 2)
    return file.getvalue().replace(b"\x10" * 64, b"\xff" * 64)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("path", [AUTO, AVX2, AVX512])
@pytest.mark.parametrize("resize_in", get_args(ResizeIn))
@pytest.mark.parametrize("size", [1, 2, 3, 30, 31, 32, 33, 85, pytest.param(224, marks=pytest.mark.exhaustive)])
def test_all_instruction_sets_give_the_same_bytes(
    path: int, size: int, resize_in: ResizeIn, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [jpeg(211, 157, sampling, 4) for sampling in SAMPLINGS] + [overflowing(211, 157)]
    bilinear = boxes(211, 157, 10, size)
    bicubic = [view._replace(cubic=True) for view in boxes(211, 157, 4, size + 1)]
    jpegs, views = zip(*itertools.product(images, bilinear + bicubic), strict=True)

    def decode(path: int) -> torch.Tensor:
        return NativeDecoder(resize_in=resize_in, path=path).decode_batch(jpegs, views, size, bounded=True)

    portable = decode(PORTABLE)
    if not processor_has(path):
        emulated = partial(request.getfixturevalue, "emulated")
        monkeypatch.setattr("imagestream.decode.native.decoder.open_library", emulated)
    assert torch.equal(decode(path), portable)


@needs_native
@pytest.mark.parametrize("resize_in", get_args(ResizeIn))
def test_threads_change_nothing(resize_in: ResizeIn) -> None:
    jpegs = [jpeg(100 + seed, 80, SAMPLINGS[seed % len(SAMPLINGS)], seed) for seed in range(40)]
    views = [random_resized_crop(100, 80, sample_draws(0, 0, i), scale=(0.08, 1.0), ratio=(0.75, 1.33), flip_prob=0.5)
             for i in range(40)]  # fmt: skip
    decoders = [NativeDecoder(resize_in=resize_in, threads=n) for n in (1, 2, 7, 100)]
    one, *more = (decoder.decode_batch(jpegs, views, 20, bounded=True) for decoder in decoders)
    assert all(torch.equal(one, other) for other in more)


@needs_native
def test_what_is_no_rgb_jpeg_is_left_to_pillow_image_by_image() -> None:
    cmyk, png, whole = io.BytesIO(), io.BytesIO(), View((0, 0, 60, 40), True)
    Image.fromarray(photo(60, 40)).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(photo(60, 40)).save(png, "PNG")
    jpegs = [jpeg(60, 40), cmyk.getvalue(), png.getvalue(), jpeg(60, 40, seed=1)]
    decoder = NativeDecoder()
    assert decoder.image_sizes(jpegs) == [(60, 40)] * 4
    ours = decoder.decode_batch(jpegs, [whole] * 4, 32, bounded=True)
    assert torch.equal(ours, pillow.decode_batch(jpegs, [whole] * 4, 32, bounded=True))
    assert decoder.left_to_pillow == 2


@needs_native
def test_sizes_are_pillows() -> None:
    jpegs = [jpeg(width, height, sampling) for sampling in SAMPLINGS for width, height in SHAPES]
    assert NativeDecoder().image_sizes(jpegs) == [pillow.image_size(data) for data in jpegs]
    assert NativeDecoder().image_sizes([]) == []


@needs_native
@pytest.mark.parametrize("broken", [b"", b"\xff\xd8\xff", b"not an image at all", jpeg(200, 150)[:2500]], ids=len)
def test_a_damaged_image_is_named_by_its_place_and_reason(broken: bytes) -> None:
    jpegs, views = [jpeg(200, 150), jpeg(200, 150), broken], [View((0, 0, 200, 150), False)] * 3
    for decoder in (NativeDecoder(), pillow.PillowDecoder()):
        with pytest.raises(DecodeError, match=r"truncated|not an image") as caught:
            decoder.image_sizes(jpegs)
            decoder.decode_batch(jpegs, views, 32, bounded=True)
        assert caught.value.index == 2


@needs_native
def test_damage_below_the_crop_is_not_seen_and_damage_in_it_is() -> None:
    data = jpeg(200, 400, quality=95)
    half = data[: len(data) * 3 // 4]
    top, bottom = View((0, 0, 200, 100), False), View((0, 300, 200, 400), False)
    whole = pillow.decode_batch([data], [top], 32, bounded=True)
    assert torch.equal(NativeDecoder().decode_batch([half], [top], 32, bounded=True), whole)
    with pytest.raises(DecodeError, match="truncated"):
        NativeDecoder().decode_batch([half], [bottom], 32, bounded=True)


@pytest.mark.slow
@needs_native
def test_of_damaged_images_none_is_refused_that_pillow_accepts_and_their_pixels_are_the_same() -> None:
    accepted = more = 0
    different = []
    for number, data in enumerate(mutants(1500)):
        try:
            ((width, height),) = NativeDecoder().image_sizes([data])
        except DecodeError:
            continue
        if width * height > 1_000_000:
            continue
        outcomes = [decoded(decoder, data, width, height) for decoder in (NativeDecoder(), pillow.PillowDecoder())]
        ours, reference = outcomes
        if reference is not None:
            assert ours is not None
            assert decoded(NativeDecoder(resize_in="ycbcr"), data, width, height) is not None
            accepted += 1
            different += [number] * (not torch.equal(ours, reference))
        elif ours is not None:
            more += 1
    assert accepted > 300
    assert different == []
    assert more <= accepted * 0.02  # of files whose tables of no use to the picture are broken


def decoded(decoder: Decoder, data: bytes, width: int, height: int) -> torch.Tensor | None:
    """The whole image, or None where it is refused, with a reason."""
    try:
        return decoder.decode_batch([data], [View((0, 0, width, height), False)], 24, bounded=True)
    except DecodeError as error:
        assert str(error)
        return None


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_shrinks_in_ycbcr_is_three_levels_off_at_most_where_no_colour_is_clipped(
    sampling: str, progressive: bool
) -> None:
    """Three are what rounding adds up to: of Y, Cb and Cr by half a level, as of the reference's intermediate rows."""
    shrunk = 0
    for seed, (width, height) in enumerate(SHAPES):
        data = jpeg(width, height, sampling, seed, contrast=0.3, progressive=progressive)
        views = boxes(width, height, 12, seed)
        for size, bounded in itertools.product((1, 7, 32, 97), (True, False)):
            exact, ours = (
                NativeDecoder(resize_in=where).decode_batch([data] * len(views), views, size, bounded=bounded).int()
                for where in ("rgb", "ycbcr")
            )
            off = (ours - exact).abs().amax(dim=(1, 2, 3))
            lower = torch.tensor([view.box[3] - view.box[1] <= size for view in views])
            assert off[lower].eq(0).all()
            assert [(size, bounded, views[i].box) for i in off.gt(3).nonzero().flatten().tolist()] == []
            shrunk += int(off.ne(0).sum())
    by_libjpeg = progressive or sampling in ("4:1:1", "1:4 rows")
    assert shrunk == 0 if by_libjpeg else shrunk > 100


@needs_native
@pytest.mark.parametrize("sampling", ["4:2:0", "4:2:2"])
def test_in_ycbcr_colours_at_the_images_edges_are_not_mixed_with_what_lies_beyond_or_before(sampling: str) -> None:
    """The outermost two pixels, one of chroma at 4:2:0, differ from the rest, and the boxes hold little else."""
    pixels, file = np.full((32, 32, 3), 128, np.uint8), io.BytesIO()
    pixels[:2] = pixels[-2:] = pixels[:, :2] = pixels[:, -2:] = (190, 90, 100)
    Image.fromarray(pixels).save(file, "JPEG", subsampling=sampling, quality=100)
    strips = [(0, 0, 32, 3), (0, 29, 32, 32), (0, 0, 3, 32), (29, 0, 32, 32), (0, 0, 32, 32)]
    views = [View(box, flip) for box in strips for flip in (False, True)]
    for size in (1, 2):
        exact, ours = (
            NativeDecoder(resize_in=where).decode_batch([file.getvalue()] * len(views), views, size, bounded=True).int()
            for where in ("rgb", "ycbcr")
        )
        assert int((ours - exact).abs().max()) <= 3


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("size", [1, 31, 44])
def test_white_stays_white_however_far_it_shrinks(size: int) -> None:
    """Rounded weights of thousands of pixels may add up to more than one, and white plus a little is black."""
    file = io.BytesIO()
    Image.new("RGB", (2440, 2440), "white").save(file, "JPEG")
    edges = (50, 500, 690, 704, 2007, 2378, 2431)
    views = [View((0, 0, width, height), False) for width in edges for height in edges]
    for path in filter(processor_has, (PORTABLE, AVX2, AVX512)):
        decoder = NativeDecoder(resize_in="ycbcr", path=path)
        assert int(decoder.decode_batch([file.getvalue()] * len(views), views, size, bounded=True).min()) == 255


@needs_native
def test_what_is_not_ycbcr_has_pillows_pixels_wherever_it_is_to_shrink() -> None:
    grey, rgb = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo(90, 61)[:, :, 0]).save(grey, "JPEG")
    Image.fromarray(photo(90, 61)).save(rgb, "JPEG", keep_rgb=True)
    jpegs, views = [grey.getvalue(), rgb.getvalue()], [View((3, 2, 88, 60), True)] * 2
    exact = pillow.decode_batch(jpegs, views, 32, bounded=True)
    decoder = NativeDecoder(resize_in="ycbcr")
    assert torch.equal(decoder.decode_batch(jpegs, views, 32, bounded=True), exact)
    assert decoder.left_to_pillow == 0


@needs_native
def test_blocks_three_rows_high_are_left_to_libjpeg() -> None:
    """They do not go whole into the memory for rows in which the others are resized."""
    file = io.BytesIO()
    Image.fromarray(photo(80, 480)).save(file, "JPEG", keep_rgb=True)
    data = bytearray(file.getvalue())
    data[data.index(b"Adobe") + 11] = 1  # Y, Cb and Cr
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for c in range(3):
        data[frame + 10 + 3 * c : frame + 12 + 3 * c] = (c + 1, 0x13)
        data[scan + 5 + 2 * c] = c + 1
    views = [View((0, 0, 80, 480), False), View((1, 30, 70, 471), True)]
    exact = pillow.decode_batch([bytes(data)] * 2, views, 32, bounded=True)
    decoder = NativeDecoder(resize_in="ycbcr")
    assert torch.equal(decoder.decode_batch([bytes(data)] * 2, views, 32, bounded=True), exact)
    assert decoder.left_to_pillow == 0


@needs_native
def test_dct_scaling_stays_close_to_the_full_decode() -> None:
    data = jpeg(640, 480, "4:2:0", 7, quality=92)
    views = [View((0, 0, 640, 480), False), View((33, 21, 600, 460), True), View((100, 100, 200, 200), False)]
    exact, near, scaled = (
        NativeDecoder(resize_in=where).decode_batch([data] * 3, views, 88, bounded=True).double()
        for where in get_args(ResizeIn)
    )
    psnr = [10 * np.log10(255**2 / max(1e-9, float(((a - b) ** 2).mean()))) for a, b in zip(exact, scaled, strict=True)]
    assert psnr[0] > 25 and psnr[1] > 25
    assert torch.equal(near[2], scaled[2])  # less than twice the result's size: not scaled
    assert not torch.equal(near[0], scaled[0])


@needs_native
def test_the_decoder_can_be_sent_to_a_worker() -> None:
    decoder = pickle.loads(pickle.dumps(open_decoder("native", resize_in="dct")))
    assert decoder.name == "native 1 resizing in dct 2"
    assert decoder.version.startswith("native 1 resizing in dct 2 (libjpeg-turbo ")
    names = [open_decoder("native", resize_in=where).name for where in get_args(ResizeIn)]
    assert names == ["native 1", "native 1 resizing in ycbcr 2", "native 1 resizing in dct 2"]


def test_auto_takes_pillow_where_the_library_is_missing_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "absent.so")
    library.open_library.cache_clear()
    backends._warn_of_pillow.cache_clear()
    try:
        assert [open_decoder("auto").name for _ in range(3)] == ["pillow"] * 3
        assert [record.message.count("imagestream/decode/build.py") for record in caplog.records] == [1]
        with pytest.raises(DecoderError, match=r"^decoder: the native decoder is not built; install"):
            open_decoder("native")
        with pytest.raises(DecoderError, match=r"^resize_in: ycbcr needs the native decoder"):
            open_decoder("auto", resize_in="ycbcr")
    finally:
        library.open_library.cache_clear()
