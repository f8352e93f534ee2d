/* Pillow's Gaussian blur; see blur.h.
 *
 * A box blur's level is a sum of whole pixels and of a part of the two beyond them, in 24 fractional bits (Pillow's
 * src/libImaging/BoxBlur.c), the outermost pixels repeated. All of it is whole numbers, so that the order of the sums,
 * which Pillow moves along a row, does not matter. The radius is worked out in Pillow's floating-point operations. */
#include "blur.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PASSES = 3, MOST_BOX_RADIUS = 32, MOST_TAPS = 2 * MOST_BOX_RADIUS + 3 };

struct box {
  int taps;               /* the pixels and one beyond at each end */
  uint32_t inner, outer; /* their weights */
};

static float box_radius(float radius) {
  float variance = radius * radius / PASSES;
  float length = (float)sqrt(12.0 * variance + 1.0);
  float whole = (float)floor((length - 1.0) / 2.0);
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
  part /= 6 * (variance - (whole + 1) * (whole + 1));
  return whole + part;
}

static int clamp(int at, int size) {
  return at < 0 ? 0 : at < size ? at : size - 1;
}

static void blur_row(uint8_t *row, int width, const struct box *box, const struct pointwise *loops, uint8_t *padded) {
  const uint8_t *taps[MOST_TAPS];
  int margin = box->taps / 2;
  size_t bytes = 3 * (size_t)width;
  for (int tap = 0; tap < box->taps; tap++) taps[tap] = padded + 3 * (size_t)tap;
  for (int pass = 0; pass < PASSES; pass++) {
    memcpy(padded + 3 * (size_t)margin, row, bytes);
    for (int x = 0; x < margin; x++) {
      memcpy(padded + 3 * (size_t)x, row, 3);
      memcpy(padded + 3 * (size_t)(margin + width + x), row + bytes - 3, 3);
    }
    loops->add_box(taps, box->taps, bytes, box->inner, box->outer, row);
  }
}

static void blur_down(const uint8_t *from, int width, int height, const struct box *box, const struct pointwise *loops,
                      uint8_t *to) {
  const uint8_t *taps[MOST_TAPS];
  size_t bytes = 3 * (size_t)width;
  for (int y = 0; y < height; y++) {
    for (int tap = 0; tap < box->taps; tap++) taps[tap] = from + bytes * (size_t)clamp(y + tap - box->taps / 2, height);
    loops->add_box(taps, box->taps, bytes, box->inner, box->outer, to + bytes * (size_t)y);
  }
}

int gaussian_blur(uint8_t *pixels, int width, int height, float radius, const struct pointwise *loops, uint8_t *other) {
  if (!(radius >= 0) || radius > MOST_BOX_RADIUS) return -1;
  if (radius == 0) return 0;
  float reach = box_radius(radius);
  int whole = (int)reach;
  struct box box = {.taps = 2 * whole + 3, .inner = (uint32_t)((float)(1 << 24) / (reach * 2 + 1))};
  if (box.taps > MOST_TAPS) return -1;
  box.outer = ((1u << 24) - (uint32_t)(2 * whole + 1) * box.inner) / 2;
  size_t bytes = 3 * (size_t)width;
  uint8_t *padded = malloc(bytes + 3 * (size_t)box.taps);
  if (!padded) return -1;
  for (int y = 0; y < height; y++) blur_row(pixels + bytes * (size_t)y, width, &box, loops, padded);
  free(padded);
  blur_down(pixels, width, height, &box, loops, other);
  blur_down(other, width, height, &box, loops, pixels);
  blur_down(pixels, width, height, &box, loops, other);
  memcpy(pixels, other, bytes * (size_t)height);
  return 0;
}
