/* Loops of augmentations over bytes, pixels or a pixel's neighbours. */
#ifndef POINTWISE_H
#define POINTWISE_H

#include <stddef.h>
#include <stdint.h>

/* `count` is of pixels of three bytes, RGB, or of bytes where the argument is called so. */
struct pointwise {
  void (*look_up)(uint8_t *pixels, size_t count, const uint8_t (*tables)[256]); /* a table for each channel */
  void (*solarize)(uint8_t *bytes, size_t count, int threshold);                /* invert from it on */
  void (*mask)(uint8_t *bytes, size_t count, uint8_t kept);
  void (*extremes)(const uint8_t *pixels, size_t count, uint8_t *least, uint8_t *most); /* of each channel */
  uint64_t (*sum_of_grey)(const uint8_t *pixels, size_t count);
  void (*blend)(const uint8_t *from, const uint8_t *to, size_t bytes, float factor, uint8_t *out); /* Image.blend */
  void (*saturate)(uint8_t *pixels, size_t count, float factor);                               /* ImageEnhance.Color */
  /* ImageFilter.SMOOTH of the row between two others, but for its first and last pixel. */
  void (*smooth)(const uint8_t *const rows[3], size_t bytes, uint8_t *out);
  void (*add_weighted)(float *sums, const uint8_t *bytes, size_t count, float weight);
  void (*mix)(uint8_t *bytes, size_t count, float share, const float *sums);
  /* The weighted sum of `taps` rows, of which the first and the last have the weight `outer`; 24 fractional bits. */
  void (*add_box)(const uint8_t *const *rows, int taps, size_t bytes, uint32_t inner, uint32_t outer, uint8_t *out);
};

extern const struct pointwise pointwise_portable, pointwise_avx2;

#endif
