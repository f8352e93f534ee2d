/* Pillow's ImageFilter.GaussianBlur: three box blurs across, then three down. */
#ifndef BLUR_H
#define BLUR_H

#include <stdint.h>

#include "pointwise.h"

/* Args: other: memory of the image's size. Returns 0, or -1 where the radius is out of bounds or memory is lacking. */
int gaussian_blur(uint8_t *pixels, int width, int height, float radius, const struct pointwise *loops, uint8_t *other);

#endif
