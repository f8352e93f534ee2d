/* The loops of augmentations that look at a byte, a pixel or its neighbours.
 *
 * Each is written once and compiled for each path; the compiler finds the vectors. Floating-point operations are
 * Pillow's, one by one and in its order (ImageEnhance is Image.blend: in1 + factor * (in2 - in1) in single precision,
 * cut off to a whole number), so results are equal to the bit on all paths. */
#include "pointwise.h"

#include "pointwise_avx2.h"

#define INLINE __attribute__((always_inline)) static inline

INLINE uint8_t clip(float level) {
  level = level > 0.0f ? level : 0.0f;
  level = level < 255.0f ? level : 255.0f;
  return (uint8_t)(int)level;
}

/* Image.blend of one byte. Between 0 and 1 Pillow does not clip; there clipping changes nothing. */
INLINE uint8_t blend(int from, int to, float factor) {
  return clip((float)from + factor * (float)(to - from));
}

/* ITU-R 601-2, as Image.convert("L") has it. */
INLINE int grey(const uint8_t *pixel) {
  return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

INLINE void look_up(uint8_t *restrict pixels, size_t count, const uint8_t (*restrict tables)[256]) {
  for (size_t i = 0; i < count; i++, pixels += 3) {
    pixels[0] = tables[0][pixels[0]];
    pixels[1] = tables[1][pixels[1]];
    pixels[2] = tables[2][pixels[2]];
  }
}

INLINE void solarize(uint8_t *bytes, size_t count, int threshold) {
  if (threshold > 255) return;
  uint8_t least = (uint8_t)threshold;
  for (size_t i = 0; i < count; i++) bytes[i] = bytes[i] < least ? bytes[i] : (uint8_t)~bytes[i];
}

INLINE void mask(uint8_t *bytes, size_t count, uint8_t kept) {
  for (size_t i = 0; i < count; i++) bytes[i] &= kept;
}

INLINE void extremes(const uint8_t *pixels, size_t count, uint8_t *least, uint8_t *most) {
  enum { STEP = 96 }; /* bytes: whole pixels, and whole registers */
  uint8_t low[STEP], high[STEP];
  size_t bytes = 3 * count, at = 0;
  for (int i = 0; i < STEP; i++) low[i] = 255, high[i] = 0;
  for (; at + STEP <= bytes; at += STEP)
    for (int i = 0; i < STEP; i++) {
      uint8_t byte = pixels[at + (size_t)i];
      low[i] = byte < low[i] ? byte : low[i];
      high[i] = byte > high[i] ? byte : high[i];
    }
  for (int i = 0; at + (size_t)i < bytes; i++) {
    uint8_t byte = pixels[at + (size_t)i];
    low[i] = byte < low[i] ? byte : low[i];
    high[i] = byte > high[i] ? byte : high[i];
  }
  for (int c = 0; c < 3; c++) least[c] = 255, most[c] = 0;
  for (int i = 0; i < STEP; i++) {
    least[i % 3] = low[i] < least[i % 3] ? low[i] : least[i % 3];
    most[i % 3] = high[i] > most[i % 3] ? high[i] : most[i % 3];
  }
}

/* Of 13 parts five are the pixel and one each neighbour. The sum is rounded: floor(sum / 13 + 1/2), which is far enough
 * from a whole number (1/26) for Pillow's single precision to say the same. */
INLINE void smooth(const uint8_t *const rows[3], size_t bytes, uint8_t *restrict out) {
  enum { STEP = 1024 };
  const uint8_t *restrict above = rows[0], *restrict row = rows[1], *restrict below = rows[2];
  uint16_t columns[STEP + 6]; /* sums of three */
  for (size_t at = 3; at + 3 < bytes; at += STEP) {
    size_t step = bytes - 3 - at < STEP ? bytes - 3 - at : STEP;
    for (size_t i = 0; i < step + 6; i++)
      columns[i] = (uint16_t)(above[at - 3 + i] + row[at - 3 + i] + below[at - 3 + i]);
    for (size_t i = 0; i < step; i++) {
      uint16_t sum = (uint16_t)(columns[i] + columns[i + 3] + columns[i + 6] + 4 * row[at + i]);
      uint16_t doubled = (uint16_t)(2 * sum + 13);
      out[at + i] = (uint8_t)((uint16_t)(((uint32_t)doubled * 20165) >> 16) >> 3); /* / 26, exact up to 13 * 255 */
    }
  }
}

INLINE void add_weighted(float *restrict sums, const uint8_t *restrict bytes, size_t count, float weight) {
  for (size_t i = 0; i < count; i++) sums[i] += weight * (float)bytes[i];
}

INLINE void mix(uint8_t *restrict bytes, size_t count, float share, const float *restrict sums) {
  float rest = 1.0f - share;
  for (size_t i = 0; i < count; i++) bytes[i] = clip(rest * (float)bytes[i] + share * sums[i]);
}

#define FUNCTIONS(path, attribute) \
  attribute static void look_up_##path(uint8_t *pixels, size_t count, const uint8_t (*tables)[256]) { \
    look_up(pixels, count, tables); \
  } \
  attribute static void solarize_##path(uint8_t *bytes, size_t count, int threshold) { \
    solarize(bytes, count, threshold); \
  } \
  attribute static void mask_##path(uint8_t *bytes, size_t count, uint8_t kept) { mask(bytes, count, kept); } \
  attribute static void extremes_##path(const uint8_t *pixels, size_t count, uint8_t *least, uint8_t *most) { \
    extremes(pixels, count, least, most); \
  } \
  attribute static void smooth_##path(const uint8_t *const rows[3], size_t bytes, uint8_t *out) { \
    smooth(rows, bytes, out); \
  } \
  attribute static void add_weighted_##path(float *sums, const uint8_t *bytes, size_t count, float weight) { \
    add_weighted(sums, bytes, count, weight); \
  } \
  attribute static void mix_##path(uint8_t *bytes, size_t count, float share, const float *sums) { \
    mix(bytes, count, share, sums); \
  }

#define LOOPS(path) \
  { \
    look_up_##path, solarize_##path, mask_##path,         extremes_##path, sum_of_grey_##path, blend_##path, \
    saturate_##path, smooth_##path,  add_weighted_##path, mix_##path,      add_box_##path, \
  }

static uint64_t sum_of_grey_portable(const uint8_t *pixels, size_t count) {
  enum { STEP = 4096 }; /* pixels, of which the sum fits 32 bits */
  uint64_t sum = 0;
  for (size_t at = 0; at < count; at += STEP) {
    size_t step = count - at < STEP ? count - at : STEP;
    uint32_t part = 0;
    for (size_t i = 0; i < step; i++) part += (uint32_t)grey(pixels + 3 * (at + i));
    sum += part;
  }
  return sum;
}

static void blend_portable(const uint8_t *from, const uint8_t *to, size_t bytes, float factor, uint8_t *out) {
  for (size_t i = 0; i < bytes; i++) out[i] = blend(from[i], to[i], factor);
}

static void saturate_portable(uint8_t *pixels, size_t count, float factor) {
  for (size_t i = 0; i < count; i++, pixels += 3) {
    int from = grey(pixels);
    for (int c = 0; c < 3; c++) pixels[c] = blend(from, pixels[c], factor);
  }
}

static void add_box_portable(const uint8_t *const *rows, int taps, size_t bytes, uint32_t inner, uint32_t outer,
                             uint8_t *out) {
  for (size_t i = 0; i < bytes; i++) {
    uint32_t sum = 0, ends = (uint32_t)rows[0][i] + rows[taps - 1][i];
    for (int tap = 1; tap < taps - 1; tap++) sum += rows[tap][i];
    out[i] = (uint8_t)((sum * inner + ends * outer + (1u << 23)) >> 24);
  }
}

FUNCTIONS(portable, )
const struct pointwise pointwise_portable = LOOPS(portable);

#ifdef HAVE_X86
FUNCTIONS(avx2, __attribute__((target("avx2"))))
const struct pointwise pointwise_avx2 = LOOPS(avx2);
#endif
