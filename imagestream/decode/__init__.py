"""JPEG bytes in, uint8 (B, H, W, 3) out: one call a batch.

Pillow is the reference that the native decoder is held against, and does its work where that is not built. Nothing is
imported here, because `convert` uses the native library and has no need of torch.
"""
