"""What a JPEG's frame header says, read as libjpeg reads it: which process, how many bits, which sampling."""

import struct
from dataclasses import dataclass

BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the others define tables
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a segment
_END, _SCAN = 0xD9, 0xDA


@dataclass(frozen=True, slots=True)
class Component:
    across: int  # sampling factors
    down: int
    table: int  # number of its quantization table


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame header (ITU-T T.81, B.2.2).

    Attributes:
        marker: 0xC0 (SOF0, baseline) to 0xCF.
        height_px: 0 where it follows after the first scan (DNL), which libjpeg does not read.
    """

    marker: int
    precision_bits: int
    width_px: int
    height_px: int
    components: tuple[Component, ...]

    @property
    def process(self) -> str:
        """`SOF0`, as the standard numbers them."""
        return f"SOF{self.marker - 0xC0}"

    @property
    def is_lossless(self) -> bool:
        return self.marker in _LOSSLESS_FRAMES

    @property
    def sampling(self) -> str:
        """`2x2, 1x1, 1x1`."""
        return ", ".join(f"{component.across}x{component.down}" for component in self.components)

    @property
    def has_whole_sampling(self) -> bool:
        """Whether a sample of each component covers a whole number of pixels, across and down."""
        across = max((component.across for component in self.components), default=1)
        down = max((component.down for component in self.components), default=1)
        return all(
            part.across and part.down and not across % part.across and not down % part.down for part in self.components
        )


def is_safe_to_scale(data: bytes) -> bool:
    """Whether libjpeg may be asked for an image at a smaller scale (Pillow's `draft`): SOF0 to SOF2 alone.

    libjpeg-turbo 3.0 and 3.1 write past their buffers when a lossless JPEG (SOF3) is asked for at a smaller scale.
    """
    frame = read_frame(data)
    return frame is not None and frame.marker in (BASELINE, EXTENDED, PROGRESSIVE)


def read_frame(data: bytes) -> Frame | None:
    """The first frame header before the first scan; None where there is none.

    Bytes between segments are passed over, as libjpeg does.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2
        if marker == 0 or marker in _ALONE:
            continue
        if marker in (_END, _SCAN) or at + 2 > len(data):
            return None
        (size,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            return _frame(marker, data[at + 2 : at + size])
        at += max(2, size)
    return None


def _frame(marker: int, body: bytes) -> Frame | None:
    if len(body) < 6:
        return None
    precision_bits, height_px, width_px, count = struct.unpack_from(">BHHB", body)
    parts = [body[6 + 3 * n : 9 + 3 * n] for n in range(count)]
    if any(len(part) < 3 for part in parts):
        return None
    components = tuple(Component(part[1] >> 4, part[1] & 15, part[2]) for part in parts)
    return Frame(marker, precision_bits, width_px, height_px, components)
