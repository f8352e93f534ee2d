"""Damaged JPEGs by the thousand: each is refused with a reason, or decodes in the trainer as well."""

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert import images
from convert.images import check_image, parse_resize
from imagestream.decode import pillow
from imagestream.decode.crops import center_view
from imagestream.decode.native import library
from imagestream.decode.rgb import BadImage
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

MUTANTS, SEED = 2400, 20
MEMORY_LIMIT_BYTES = 1_500_000_000


def originals() -> list[bytes]:
    rng = np.random.default_rng(SEED)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("RGB", {}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "quality": 95}),
        ("RGB", {"restart_marker_rows": 1, "optimize": True}),
    ]
    found = []
    for mode, options in kinds:
        pixels = rng.integers(0, 256, (60, 84, 3), dtype=np.uint8)
        out = BytesIO()
        Image.fromarray(pixels).convert(mode).save(out, "JPEG", **options)
        found.append(out.getvalue())
    return found


def mutants(count: int) -> Iterator[bytes]:
    rng, sources = random.Random(SEED), originals()
    for number in range(count):
        data = bytearray(rng.choice(sources))
        if number % 4 == 0:
            for _ in range(rng.choice((1, 3, 20))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif number % 4 == 1:
            del data[rng.randrange(1, len(data)) :]
        elif number % 4 == 2:
            swap_markers(data, rng)
        else:
            header = rng.randrange(min(len(data), 700))
            data[header : header + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(0, 9))
        yield bytes(data)


def swap_markers(data: bytearray, rng: random.Random) -> None:
    """Exchange two of the segments, or give one another kind."""
    places = [at for at in range(2, len(data) - 4) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    first, second = sorted(rng.sample(places, 2))
    if rng.random() < 0.5:
        data[first + 1], data[second + 1] = data[second + 1], data[first + 1]
    else:
        (size,) = struct.unpack_from(">H", data, first + 2)
        segment = data[first : first + 2 + size]
        del data[first : first + 2 + size]
        data[second:second] = segment


def verdicts() -> Iterator[str]:
    """`kept` or the reason of each mutant: as it is, made smaller, small enough; run in a process of its own."""
    smaller, as_large = (parse_resize(f"max={side}", quality=90, subsampling="4:2:0") for side in (40, 84))
    for data in mutants(MUTANTS):
        for resize in (None, smaller, as_large):
            try:
                check_image(data, resize)
                yield "kept"
            except BadImage as error:
                yield str(error) or "no reason"


@pytest.fixture(scope="module")
def outcome() -> tuple[list[str], int]:
    """The verdicts and the peak memory, out of a process that hangs or crashes without taking the tests along."""
    code = (
        "import resource; from tests.unit.test_convert_fuzz import verdicts\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for verdict in verdicts(): print(ascii(verdict))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, grown_kb = done.stdout.splitlines()
    return lines, int(grown_kb) * 1024


def test_damaged_images_neither_crash_nor_hang_nor_fill_the_memory(outcome: tuple[list[str], int]) -> None:
    lines, grown_bytes = outcome
    assert len(lines) == 3 * MUTANTS
    assert "'no reason'" not in lines
    as_they_are, small_enough = ([line == "'kept'" for line in lines[first::3]] for first in (0, 2))
    assert as_they_are == small_enough  # also where a progressive JPEG becomes a baseline one
    kept = lines.count("'kept'")
    assert MUTANTS * 0.3 < kept < MUTANTS * 2.7, "the mutations are too mild or too harsh to tell anything"
    assert grown_bytes < MEMORY_LIMIT_BYTES


def test_what_is_kept_decodes_in_the_trainer(outcome: tuple[list[str], int]) -> None:
    kept = [data for data, line in zip(mutants(MUTANTS), outcome[0][::3], strict=True) if line == "'kept'"]
    for data in kept:
        stored = check_image(data).data
        width, height = pillow.image_size(stored)
        if width * height < 4_000_000:
            view = center_view(width, height, resize_size=40, crop_size=32)
            assert pillow.decode_batch([stored], [view], 32, bounded=False).shape == (1, 32, 32, 3)


@pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")
def test_the_native_check_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [*originals(), *mutants(MUTANTS)]
    with_it = [verdict(data) for data in everything]
    monkeypatch.setattr(images, "_HAS_NATIVE_CHECK", False)
    assert with_it == [verdict(data) for data in everything]
    # And it is at work: of the originals it leaves the CMYK and the progressive one to Pillow.
    assert [library.is_sound(data) for data in originals()] == [True, True, False, False, True, True]
    assert 0.05 * MUTANTS < sum(map(library.is_sound, mutants(MUTANTS))) < 0.5 * MUTANTS


def verdict(data: bytes) -> images.Checked | str:
    try:
        return check_image(data)
    except BadImage as error:
        return str(error)
