"""What an image may be, for the converter, the loader and predictions alike."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
"""A closed list, for some of Pillow's other readers start programs (EPS starts Ghostscript)."""
MAX_PIXELS = 89_478_485  # Pillow's own limit for what is no decompression bomb (Image.MAX_IMAGE_PIXELS), 268 MB of RGB
MAX_FILE_BYTES = 256 * 1024**2  # files are read whole
