/* Pillow's antialiased bilinear and bicubic resize; see resample.h.
 *
 * The weights are worked out in the same floating-point operations as Pillow's (Pillow 11, src/libImaging/Resample.c:
 * a triangle or a cubic widened by the scale, 22 fractional bits), and everything after that is integer arithmetic whose
 * order does not matter, so results are equal on all processors and, with fine weights, to Pillow's bit for bit. */
#include "resample.h"

#include "colours.h"
#include "inverse_dct.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_X86
#include <immintrin.h>
#endif

enum { LOW_BITS = 11, LOW_MASK = (1 << LOW_BITS) - 1 };
#define HALF(bits) (1u << ((bits) - 1))

/* ---- the plan of an axis -------------------------------------------------------------------------------------- */

static double triangle(double x) {
  if (x < 0.0) x = -x;
  return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys's, with a = -1/2. */
static double cubic(double x) {
  if (x < 0.0) x = -x;
  if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

static int reserve_pixels(struct filter *filter, int size) {
  size_t pixels = ((size_t)size + 3) / 4 * 4;
  if (pixels > filter->pixel_capacity) {
    filter_free(filter);
    filter->first = malloc(pixels * sizeof *filter->first);
    filter->count = malloc(pixels * sizeof *filter->count);
    if (!filter->first || !filter->count) return -1;
    filter->pixel_capacity = pixels;
  }
  filter->size = size;
  return 0;
}

static int reserve_weights(struct filter *filter, int groups) {
  size_t count = ((size_t)filter->size + 3) / 4 * 4 * (size_t)groups * 8;
  if (count > filter->weight_capacity) {
    free(filter->weights);
    filter->weight_capacity = 0;
    filter->weights = malloc(count * sizeof *filter->weights);
    if (!filter->weights) return -1;
    filter->weight_capacity = count;
  }
  filter->groups = groups;
  memset(filter->weights, 0, count * sizeof *filter->weights);
  return 0;
}

/* Where the weights of pixel o start; those of its next four taps lie GROUP_STRIDE further on. */
enum { GROUP_STRIDE = 4 * 8 };

static int16_t *weights_of(const struct filter *filter, int o) {
  return filter->weights + ((size_t)(o / 4) * (size_t)filter->groups * 4 + (size_t)(o % 4)) * 8;
}

static uint32_t weight_of(const int16_t *weights, int tap, int bits) {
  const int16_t *group = weights + tap / 4 * GROUP_STRIDE + tap % 4;
  return bits == COARSE ? (uint32_t)group[0] : ((uint32_t)group[0] << LOW_BITS) + (uint32_t)group[4];
}

static void set_weight(int16_t *weights, int tap, int bits, uint32_t weight) {
  int16_t *group = weights + tap / 4 * GROUP_STRIDE + tap % 4;
  group[0] = (int16_t)(bits == COARSE ? (int32_t)weight : (int32_t)weight >> LOW_BITS);
  group[4] = (int16_t)(bits == COARSE ? 0 : weight & LOW_MASK);
}

int filter_plan(struct filter *filter, int source_size, float from, float to, int size, int whole, int start,
                int mirrored, int is_cubic, enum weight_bits bits) {
  double scale = (double)(to - from) / whole;
  double stretch = scale < 1.0 ? 1.0 : scale; /* upscaling interpolates between neighbours */
  double shares[MAX_TAPS], inverse = 1.0 / stretch, support = (is_cubic ? 2.0 : 1.0) * stretch;
  int most = 0;
  if (source_size < 1 || size < 1 || !(to > from) || support > MAX_TAPS / 2 - 4) return -1;
  if (reserve_pixels(filter, size)) return -1;
  for (int o = 0; o < size; o++) {
    double center = from + (start + o + 0.5) * scale;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    if (first < 0) first = 0;
    if (end > source_size) end = source_size;
    int count = end - first, at = mirrored ? size - 1 - o : o;
    if (count < 1 || count > MAX_TAPS) return -1;
    filter->first[at] = first, filter->count[at] = count;
    if (count > most) most = count;
  }
  for (int at = size; at % 4; at++) filter->first[at] = filter->first[size - 1], filter->count[at] = 0;
  if (reserve_weights(filter, (most + 3) / 4)) return -1;
  filter->most = most, filter->bits = bits, filter->is_cubic = is_cubic;
  for (int o = 0; o < size; o++) {
    int at = mirrored ? size - 1 - o : o, first = filter->first[at], count = filter->count[at];
    double center = from + (start + o + 0.5) * scale, sum = 0.0;
    for (int t = 0; t < count; t++) {
      double distance = (t + first - center + 0.5) * inverse;
      sum += shares[t] = is_cubic ? cubic(distance) : triangle(distance);
    }
    int16_t *weights = weights_of(filter, at);
    for (int t = 0; t < count; t++) {
      double share = sum != 0.0 ? shares[t] / sum : shares[t];
      int weight = (int)((share < 0 ? -0.5 : 0.5) + share * (1 << bits));
      set_weight(weights, t, bits, (uint32_t)weight);
    }
  }
  return 0;
}

int filter_plan_chroma(struct filter *chroma, const struct filter *luma, int origin, int height, int down) {
  int last = (height + down - 1) / down - 1; /* row of chroma */
  uint32_t quarters[MAX_TAPS + 4];           /* of the weights */
  int most = luma->most / down + (down == 2 ? 3 : 0);
  if (reserve_pixels(chroma, luma->size) || reserve_weights(chroma, (most + 3) / 4)) return -1;
  chroma->most = most, chroma->bits = luma->bits, chroma->is_cubic = 0;
  for (int o = 0; o < luma->size; o++) {
    const int16_t *weights = weights_of(luma, o);
    int16_t *own = weights_of(chroma, o);
    int begin = origin + luma->first[o], end = begin + luma->count[o];
    int first = down == 2 ? (begin - 1) / 2 : begin; /* an even row leans on the one before */
    int count = (down == 2 && end / 2 <= last ? end / 2 : (end - 1) / down) + 1 - first; /* an odd one on the next */
    for (int t = 0; t < count; t++) quarters[t] = 0;
    for (int row = begin; row < end; row++) {
      int near = down == 2 ? row / 2 : row, next = down == 1 ? near : row % 2 ? near + 1 : near - 1;
      uint32_t weight = weight_of(weights, row - begin, luma->bits);
      quarters[near - first] += 3 * weight;
      quarters[(next < 0 ? 0 : next > last ? last : next) - first] += weight;
    }
    chroma->first[o] = first, chroma->count[o] = count;
    for (int t = 0; t < count; t++) set_weight(own, t, chroma->bits, (quarters[t] + 2) / 4);
  }
  return 0;
}

void filter_shift(struct filter *filter, int by) {
  for (int o = 0; o < filter->size || o % 4; o++) filter->first[o] += by;
}

void filter_free(struct filter *filter) {
  free(filter->first), free(filter->count), free(filter->weights);
  memset(filter, 0, sizeof *filter);
}

/* ---- portable kernels ----------------------------------------------------------------------------------------- */

#define INLINE_EVERYWHERE __attribute__((always_inline)) static inline

/* From a weighted sum to a level; of a cubic's it may lie outside 0-255. */
INLINE_EVERYWHERE uint8_t settled(uint32_t sum, int bits, int is_cubic) {
  if (!is_cubic) return (uint8_t)(sum >> bits);
  int32_t level = (int32_t)sum >> bits;
  return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

INLINE_EVERYWHERE void horizontal_of(const uint8_t *source, const struct filter *filter, int is_cubic, uint8_t *out) {
  for (int o = 0; o < filter->size; o++) {
    const uint8_t *pixel = source + 4 * (ptrdiff_t)filter->first[o];
    const int16_t *weights = weights_of(filter, o);
    uint32_t r = HALF(filter->bits), g = r, b = r;
    for (int t = 0; t < filter->count[o]; t++, pixel += 4) {
      uint32_t weight = weight_of(weights, t, filter->bits);
      r += pixel[0] * weight, g += pixel[1] * weight, b += pixel[2] * weight;
    }
    out[3 * o] = settled(r, filter->bits, is_cubic);
    out[3 * o + 1] = settled(g, filter->bits, is_cubic);
    out[3 * o + 2] = settled(b, filter->bits, is_cubic);
  }
}

static void horizontal_portable(const uint8_t *source, const struct filter *filter, uint8_t *out) {
  if (filter->is_cubic)
    horizontal_of(source, filter, 1, out);
  else
    horizontal_of(source, filter, 0, out);
}

INLINE_EVERYWHERE void vertical_of(const uint8_t *const *rows, const struct filter *filter, int o, size_t bytes,
                                   int is_cubic, uint8_t *out) {
  enum { STEP = 256 };
  uint32_t sums[STEP];
  for (size_t at = 0; at < bytes; at += STEP) {
    size_t step = bytes - at < STEP ? bytes - at : STEP;
    for (size_t i = 0; i < step; i++) sums[i] = HALF(filter->bits);
    for (int t = 0; t < filter->count[o]; t++) {
      const uint8_t *row = rows[t] + at;
      uint32_t weight = weight_of(weights_of(filter, o), t, filter->bits);
      for (size_t i = 0; i < step; i++) sums[i] += row[i] * weight;
    }
    for (size_t i = 0; i < step; i++) out[at + i] = settled(sums[i], filter->bits, is_cubic);
  }
}

static void vertical_portable(const uint8_t *const *rows, const struct filter *filter, int o, size_t bytes,
                              uint8_t *out) {
  if (filter->is_cubic)
    vertical_of(rows, filter, o, bytes, 1, out);
  else
    vertical_of(rows, filter, o, bytes, 0, out);
}

static const struct kernels portable = {horizontal_portable, vertical_portable, colours_portable, NULL};

/* ---- x86 ------------------------------------------------------------------------------------------------------ */

#ifdef HAVE_X86

static int32_t two_weights(const int16_t *weights) {
  int32_t pair;
  memcpy(&pair, weights, sizeof pair);
  return pair;
}

/* Two taps of the pixel in each 128-bit lane: (r0 r1 g0 g1 b0 b1 x0 x1) as 16-bit numbers. */
#define PAIR_OF_TAPS(at) at, -1, at + 4, -1, at + 1, -1, at + 5, -1, at + 2, -1, at + 6, -1, at + 3, -1, at + 7, -1
/* Drop the fourth byte of four pixels. */
#define RGB_OF_RGBX 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1

static const __m128i *at_pixel(const uint8_t *source, int pixel) {
  return (const __m128i *)(source + 4 * (ptrdiff_t)pixel);
}

/* Have `row` compiled for each kind of filter. */
#define BY_SHAPE(row, source, filter, out) \
  int groups = filter->groups, halved = (filter->most - 1) % 4 < 2; \
  if (filter->bits == COARSE) \
    row(source, filter, groups, 0, COARSE, out); \
  else if (groups == 1 && halved) /* enlarged, as most crops of small images are */ \
    row(source, filter, 1, 1, FINE, out); \
  else if (groups == 1) \
    row(source, filter, 1, 0, FINE, out); \
  else if (halved) \
    row(source, filter, groups, 1, FINE, out); \
  else \
    row(source, filter, groups, 0, FINE, out);

/* From the sums over the upper and the lower halves of the weights to levels, of cubics perhaps outside 0-255. */
#define SETTLE(P, bits, high, low) \
  P##_srai_epi32(P##_add_epi32((bits) == COARSE ? high : P##_add_epi32(P##_slli_epi32(high, LOW_BITS), low), \
                               P##_set1_epi32((int)HALF(bits))), (unsigned)(bits))

/* The weighted sums of two output pixels, one in each lane; of the last four taps only two have weight if `halved`. */
INLINE_AVX2 __m256i horizontal_2(const uint8_t *source, const int *first, const int16_t *weights, int groups,
                                 int halved, int bits) {
  const __m256i taps_01 = _mm256_setr_epi8(PAIR_OF_TAPS(0), PAIR_OF_TAPS(0));
  const __m256i taps_23 = _mm256_setr_epi8(PAIR_OF_TAPS(8), PAIR_OF_TAPS(8));
  __m256i high = _mm256_setzero_si256(), low = high;
  for (int g = 0; g < groups; g++, source += 16, weights += GROUP_STRIDE) {
    __m256i taps = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(at_pixel(source, first[0]))),
                                           _mm_loadu_si128(at_pixel(source, first[1])), 1);
    __m256i factors = _mm256_loadu_si256((const __m256i *)weights);
    __m256i a = _mm256_shuffle_epi8(taps, taps_01);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(a, _mm256_shuffle_epi32(factors, 0x00)));
    if (bits != COARSE) low = _mm256_add_epi32(low, _mm256_madd_epi16(a, _mm256_shuffle_epi32(factors, 0xAA)));
    if (halved && g == groups - 1) break;
    __m256i b = _mm256_shuffle_epi8(taps, taps_23);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(b, _mm256_shuffle_epi32(factors, 0x55)));
    if (bits != COARSE) low = _mm256_add_epi32(low, _mm256_madd_epi16(b, _mm256_shuffle_epi32(factors, 0xFF)));
  }
  return SETTLE(_mm256, bits, high, low);
}

INLINE_AVX2 void horizontal_row(const uint8_t *source, const struct filter *filter, int groups, int halved,
                                int bits, uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(RGB_OF_RGBX);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int o = 0; o < filter->size; o += 4) {
    const int16_t *weights = weights_of(filter, o);
    __m256i a = horizontal_2(source, filter->first + o, weights, groups, halved, bits);
    __m256i b = horizontal_2(source, filter->first + o + 2, weights + 16, groups, halved, bits);
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_setzero_si256());
    __m128i pixels = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)); /* 0 2 . . 1 3 -> 0 1 2 3 */
    _mm_storeu_si128((__m128i *)(out + 3 * (ptrdiff_t)o), _mm_shuffle_epi8(pixels, compact));
  }
}

__attribute__((target("avx2"))) static void horizontal_avx2(const uint8_t *source, const struct filter *filter,
                                                            uint8_t *out) {
  BY_SHAPE(horizontal_row, source, filter, out)
}

/* 32 bytes in order: interleaving and packing both work within 128-bit lanes, so they cancel. */
INLINE_AVX2 __m256i vertical_32(const uint8_t *const *rows, const int16_t *weights, int taps, int bits, size_t at) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
  for (int t = 0; t < taps; t += 2) { /* an odd one's neighbour has weight 0 */
    const int16_t *pair = weights + t / 4 * GROUP_STRIDE + t % 4;
    __m256i upper = _mm256_set1_epi32(two_weights(pair)), lower = _mm256_set1_epi32(two_weights(pair + 4));
    __m256i a = _mm256_loadu_si256((const __m256i *)(rows[t] + at));
    __m256i b = _mm256_loadu_si256((const __m256i *)(rows[t + 1] + at));
    __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
    __m256i part[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                       _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(part[i], upper));
      if (bits != COARSE) low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(part[i], lower));
    }
  }
  return _mm256_packus_epi16(
      _mm256_packus_epi32(SETTLE(_mm256, bits, high[0], low[0]), SETTLE(_mm256, bits, high[1], low[1])),
      _mm256_packus_epi32(SETTLE(_mm256, bits, high[2], low[2]), SETTLE(_mm256, bits, high[3], low[3])));
}

INLINE_AVX2 void vertical_row(const uint8_t *const *rows, const struct filter *filter, int o, int bits, size_t bytes,
                              uint8_t *out) {
  const int16_t *weights = weights_of(filter, o);
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    _mm256_storeu_si256((__m256i *)(out + at), vertical_32(rows, weights, filter->count[o], bits, at));
  if (at < bytes) {
    uint8_t rest[32];
    _mm256_storeu_si256((__m256i *)rest, vertical_32(rows, weights, filter->count[o], bits, at));
    memcpy(out + at, rest, bytes - at);
  }
}

__attribute__((target("avx2"))) static void vertical_avx2(const uint8_t *const *rows, const struct filter *filter,
                                                          int o, size_t bytes, uint8_t *out) {
  if (filter->bits == COARSE)
    vertical_row(rows, filter, o, COARSE, bytes, out);
  else
    vertical_row(rows, filter, o, FINE, bytes, out);
}

/* As in AVX2, with four pixels to a register. */
INLINE_AVX512 void horizontal_row_512(const uint8_t *source, const struct filter *filter, int groups, int halved,
                                      int bits, uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(RGB_OF_RGBX);
  const __m512i taps_01 = _mm512_broadcast_i32x4(_mm_setr_epi8(PAIR_OF_TAPS(0)));
  const __m512i taps_23 = _mm512_broadcast_i32x4(_mm_setr_epi8(PAIR_OF_TAPS(8)));
  for (int o = 0; o < filter->size; o += 4) {
    const int *first = filter->first + o;
    const int16_t *weights = weights_of(filter, o);
    const uint8_t *at = source;
    __m512i high = _mm512_setzero_si512(), low = high;
    for (int g = 0; g < groups; g++, at += 16, weights += GROUP_STRIDE) {
      __m512i taps = _mm512_castsi128_si512(_mm_loadu_si128(at_pixel(at, first[0])));
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[1])), 1);
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[2])), 2);
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[3])), 3);
      __m512i factors = _mm512_loadu_si512(weights);
      __m512i a = _mm512_shuffle_epi8(taps, taps_01);
      high = _mm512_add_epi32(high, _mm512_madd_epi16(a, _mm512_shuffle_epi32(factors, 0x00)));
      if (bits != COARSE) low = _mm512_add_epi32(low, _mm512_madd_epi16(a, _mm512_shuffle_epi32(factors, 0xAA)));
      if (halved && g == groups - 1) break;
      __m512i b = _mm512_shuffle_epi8(taps, taps_23);
      high = _mm512_add_epi32(high, _mm512_madd_epi16(b, _mm512_shuffle_epi32(factors, 0x55)));
      if (bits != COARSE) low = _mm512_add_epi32(low, _mm512_madd_epi16(b, _mm512_shuffle_epi32(factors, 0xFF)));
    }
    __m512i levels = SETTLE(_mm512, bits, high, low);
    if (filter->is_cubic)
      levels = _mm512_min_epi32(_mm512_max_epi32(levels, _mm512_setzero_si512()), _mm512_set1_epi32(255));
    __m128i pixels = _mm512_cvtepi32_epi8(levels);
    _mm_storeu_si128((__m128i *)(out + 3 * (ptrdiff_t)o), _mm_shuffle_epi8(pixels, compact));
  }
}

INLINE_AVX512 void vertical_row_512(const uint8_t *const *rows, const struct filter *filter, int o, int bits,
                                    size_t bytes, uint8_t *out) {
  const __m512i zero = _mm512_setzero_si512();
  for (size_t at = 0; at < bytes; at += 64) {
    __mmask64 there = bytes - at >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (bytes - at)) - 1;
    __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (int t = 0; t < filter->count[o]; t += 2) { /* an odd one's neighbour has weight 0 */
      const int16_t *pair = weights_of(filter, o) + t / 4 * GROUP_STRIDE + t % 4;
      __m512i upper = _mm512_set1_epi32(two_weights(pair)), lower = _mm512_set1_epi32(two_weights(pair + 4));
      __m512i a = _mm512_maskz_loadu_epi8(there, rows[t] + at), b = _mm512_maskz_loadu_epi8(there, rows[t + 1] + at);
      __m512i first = _mm512_unpacklo_epi8(a, b), second = _mm512_unpackhi_epi8(a, b);
      __m512i part[4] = {_mm512_unpacklo_epi8(first, zero), _mm512_unpackhi_epi8(first, zero),
                         _mm512_unpacklo_epi8(second, zero), _mm512_unpackhi_epi8(second, zero)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        high[i] = _mm512_add_epi32(high[i], _mm512_madd_epi16(part[i], upper));
        if (bits != COARSE) low[i] = _mm512_add_epi32(low[i], _mm512_madd_epi16(part[i], lower));
      }
    }
    __m512i bytes_in_order = _mm512_packus_epi16(
        _mm512_packus_epi32(SETTLE(_mm512, bits, high[0], low[0]), SETTLE(_mm512, bits, high[1], low[1])),
        _mm512_packus_epi32(SETTLE(_mm512, bits, high[2], low[2]), SETTLE(_mm512, bits, high[3], low[3])));
    _mm512_mask_storeu_epi8(out + at, there, bytes_in_order);
  }
}

__attribute__((target(AVX512))) static void horizontal_avx512(const uint8_t *source, const struct filter *filter,
                                                              uint8_t *out) {
  BY_SHAPE(horizontal_row_512, source, filter, out)
}

__attribute__((target(AVX512))) static void vertical_avx512(const uint8_t *const *rows, const struct filter *filter,
                                                            int o, size_t bytes, uint8_t *out) {
  if (filter->bits == COARSE)
    vertical_row_512(rows, filter, o, COARSE, bytes, out);
  else
    vertical_row_512(rows, filter, o, FINE, bytes, out);
}

static const struct kernels avx2 = {horizontal_avx2, vertical_avx2, colours_avx2, NULL};
static const struct kernels avx512 = {horizontal_avx512, vertical_avx512, colours_avx2, inverse_dct_avx512};

const struct kernels *kernels_for(enum path path) {
  __builtin_cpu_init();
  int has_avx2 = __builtin_cpu_supports("avx2");
  int has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (path == PATH_AVX512 || (path == PATH_AUTO && has_avx512)) return has_avx512 ? &avx512 : NULL;
  if (path == PATH_AVX2 || (path == PATH_AUTO && has_avx2)) return has_avx2 ? &avx2 : NULL;
  return &portable;
}

#else

const struct kernels *kernels_for(enum path path) {
  return path == PATH_AUTO || path == PATH_PORTABLE ? &portable : NULL;
}

#endif
