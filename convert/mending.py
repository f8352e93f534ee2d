"""What the manifest says of an image that no trainer could have used as it was."""

from PIL import Image

from convert.jpeg_header import Frame


def describe(image: Image.Image, frame: Frame | None, quality: int, remarks: list[str]) -> str:
    """How the stored image differs from the file, for the manifest."""
    if frame:
        kind = f"lossless ({frame.process})" if frame.is_lossless else image.mode
        what = f"{kind} JPEG re-encoded as RGB, quality {quality}"
    else:
        what = f"{image.format} re-encoded as RGB JPEG, quality {quality}"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        remarks = [f"first of {frames} frames", *remarks]
    return ", ".join([what, *remarks])
