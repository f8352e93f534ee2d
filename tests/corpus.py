"""Judge a folder of odd images: what the converter makes of each file, and whether the trainer's decoders agree.

    python tests/corpus.py DIR

Each file is judged in a process of its own, so that one at which a decoder crashes is named and the rest continues. A
line says what became of it: kept, mended or refused, and why. These are faults, and end the command with status 1:

- a file at which the process dies, or which takes longer than LIMIT_S;
- a stored image that one of the trainer's decoders refuses, or of which the native one makes other pixels than Pillow;
- an image kept byte for byte whose size the decoders see otherwise.
"""

import faulthandler
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# `python tests/corpus.py` puts tests/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convert.images import check_image, parse_resize
from convert.pool import how_it_ended
from imagestream.decode import pillow
from imagestream.decode.backends import Decoder
from imagestream.decode.crops import View, center_view
from imagestream.decode.native import library
from imagestream.decode.native.decoder import NativeDecoder
from imagestream.decode.pillow import DecodeError
from imagestream.decode.rgb import BadImage

LIMIT_S = 120
RESIZES = (None, "short=256", "max=100")
FAULT = "FAULT"


def judge(data: bytes) -> str:
    """A line on one image; it begins with FAULT where converter and trainer disagree."""
    verdicts = []
    for spec in RESIZES:
        resize = parse_resize(spec, quality=90, subsampling="4:2:0") if spec else None
        try:
            checked = check_image(data, resize)
        except BadImage as error:
            verdicts.append(f"refused: {error}")
            continue
        fault = disagreement(checked.data, (checked.width_px, checked.height_px))
        if fault:
            return f"{FAULT}: {f'with --resize {spec}: ' * bool(spec)}{fault}"
        verdicts.append(f"mended: {checked.mended}" if checked.mended else "kept")
    return verdicts[0]


def disagreement(stored: bytes, size: tuple[int, int]) -> str | None:
    """How the trainer's decoders disagree with the converter or each other over a stored image."""
    decoders: list[Decoder] = [pillow.PillowDecoder(), *([NativeDecoder()] if library.is_built() else [])]
    width, height = size
    third = (width // 3, height // 3, width // 3 + max(1, width // 3), height // 3 + max(1, height // 3))
    cuts = [([View((0, 0, width, height), False), View(third, True)], True)]
    cuts.append(([center_view(width, height, resize_size=40, crop_size=32)], False))
    for views, bounded in cuts:
        images = []
        for decoder in decoders:
            try:
                seen = decoder.image_sizes([stored])[0]
                if seen != size:
                    return f"stored as {width} x {height} px, {decoder.name} sees {seen[0]} x {seen[1]}"
                images.append(decoder.decode_batch([stored] * len(views), views, 32, bounded=bounded))
            except DecodeError as error:
                return f"stored, but {decoder.name} refuses it: {error}"
        if len(images) == 2 and not images[0].equal(images[1]):
            return "the native decoder makes other pixels than Pillow"
    return None


def judge_apart(path: Path) -> str:
    """`judge`, in a process of its own."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        faulthandler.disable()  # pytest's would print the stack of a death that is looked for
        signal.alarm(LIMIT_S)
        try:
            line = judge(path.read_bytes())
        except BaseException as error:
            line = f"{FAULT}: {type(error).__name__}: {error}"
        os.write(theirs, line.encode("utf-8", "backslashreplace")[:60_000])  # a pipe holds 64 KiB
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        line = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code == -signal.SIGALRM:
        return f"{FAULT}: takes longer than {LIMIT_S} s"
    return f"{FAULT}: kills its process ({how_it_ended(exit_code)})" if exit_code else line


def files_of(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("usage: python tests/corpus.py DIR, a folder of images", file=sys.stderr)
        return 2
    folder, counts = Path(argv[0]), Counter[str]()
    for path in files_of(folder):
        line = judge_apart(path)
        counts[line.partition(":")[0]] += 1
        print(f"{path.relative_to(folder)}: {line}", flush=True)
    print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())) or "no files")
    return 1 if counts[FAULT] or not counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
