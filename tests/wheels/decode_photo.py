"""Decode a JPEG with the installed library; run in an environment of its own, by test_wheels.py.

python decode_photo.py PHOTO    prints, as JSON, where the library is and whether its pixels are Pillow's
"""

import json
import sys
from pathlib import Path

import torch

import imagestream
from imagestream.decode.backends import open_decoder
from imagestream.decode.crops import View


def main() -> None:
    data, view = Path(sys.argv[1]).read_bytes(), View((10, 7, 180, 120), True)
    native, pillow = open_decoder("native"), open_decoder("pillow")
    ours, reference = (decoder.decode_batch([data], [view], 64, bounded=True) for decoder in (native, pillow))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    print(
        json.dumps(
            {
                "package": imagestream.__file__,
                "decoder": native.version,
                "pixels_are_pillows": bool(torch.equal(ours, reference)) and bool(ours.any()),
                "libjpegs": sorted(path for path in mapped if "libjpeg" in Path(path).name),
                "decoders": sorted(path for path in mapped if Path(path).name.startswith("_decode-")),
            }
        )
    )


main()
