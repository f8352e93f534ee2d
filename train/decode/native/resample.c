/* Pillow's antialiased bilinear resize; see resample.h.
 *
 * The weights are worked out in the same floating-point operations as Pillow's (Pillow 11, src/libImaging/Resample.c:
 * a triangle filter widened by the scale, 22 fractional bits), and everything after that is integer arithmetic whose
 * order does not matter, so results are equal to Pillow's bit for bit and equal on all processors. */
#include "resample.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86 1
#include <immintrin.h>
#endif

enum { WEIGHT_BITS = 22, LOW_BITS = 11, LOW_MASK = (1 << LOW_BITS) - 1 };
#define HALF (1u << (WEIGHT_BITS - 1))

/* ---- the plan of an axis -------------------------------------------------------------------------------------- */

static double triangle(double x) {
  if (x < 0.0) x = -x;
  return x < 1.0 ? 1.0 - x : 0.0;
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

int filter_plan(struct filter *filter, int source_size, float from, float to, int size, int mirrored) {
  double scale = (double)(to - from) / size;
  double support = scale < 1.0 ? 1.0 : scale; /* upscaling interpolates between neighbours */
  double shares[MAX_TAPS], inverse = 1.0 / support;
  int most = 0;
  if (source_size < 1 || size < 1 || !(to > from) || support > MAX_TAPS / 2 - 4) return -1;
  if (reserve_pixels(filter, size)) return -1;
  for (int o = 0; o < size; o++) {
    double center = from + (o + 0.5) * scale;
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
  filter->most = most;
  for (int o = 0; o < size; o++) {
    int at = mirrored ? size - 1 - o : o, first = filter->first[at], count = filter->count[at];
    double center = from + (o + 0.5) * scale, sum = 0.0;
    for (int t = 0; t < count; t++) sum += shares[t] = triangle((t + first - center + 0.5) * inverse);
    int16_t *weights = weights_of(filter, at);
    for (int t = 0; t < count; t++) {
      int weight = (int)(0.5 + (sum != 0.0 ? shares[t] / sum : shares[t]) * (1 << WEIGHT_BITS));
      weights[t / 4 * GROUP_STRIDE + t % 4] = (int16_t)(weight >> LOW_BITS);
      weights[t / 4 * GROUP_STRIDE + t % 4 + 4] = (int16_t)(weight & LOW_MASK);
    }
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

static uint32_t weight_of(const int16_t *weights, int tap) {
  const int16_t *group = weights + tap / 4 * GROUP_STRIDE + tap % 4;
  return ((uint32_t)group[0] << LOW_BITS) + (uint32_t)group[4];
}

static void horizontal_portable(const uint8_t *source, const struct filter *filter, uint8_t *out) {
  for (int o = 0; o < filter->size; o++) {
    const uint8_t *pixel = source + 4 * (ptrdiff_t)filter->first[o];
    const int16_t *weights = weights_of(filter, o);
    uint32_t r = HALF, g = HALF, b = HALF;
    for (int t = 0; t < filter->count[o]; t++, pixel += 4) {
      uint32_t weight = weight_of(weights, t);
      r += pixel[0] * weight, g += pixel[1] * weight, b += pixel[2] * weight;
    }
    out[3 * o] = (uint8_t)(r >> WEIGHT_BITS);
    out[3 * o + 1] = (uint8_t)(g >> WEIGHT_BITS);
    out[3 * o + 2] = (uint8_t)(b >> WEIGHT_BITS);
  }
}

static void vertical_portable(const uint8_t *const *rows, const struct filter *filter, int o, size_t bytes,
                              uint8_t *out) {
  enum { STEP = 256 };
  uint32_t sums[STEP];
  for (size_t at = 0; at < bytes; at += STEP) {
    size_t step = bytes - at < STEP ? bytes - at : STEP;
    for (size_t i = 0; i < step; i++) sums[i] = HALF;
    for (int t = 0; t < filter->count[o]; t++) {
      const uint8_t *row = rows[t] + at;
      uint32_t weight = weight_of(weights_of(filter, o), t);
      for (size_t i = 0; i < step; i++) sums[i] += row[i] * weight;
    }
    for (size_t i = 0; i < step; i++) out[at + i] = (uint8_t)(sums[i] >> WEIGHT_BITS);
  }
}

static const struct kernels portable = {horizontal_portable, vertical_portable};

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

#define INLINE_AVX2 __attribute__((target("avx2"), always_inline)) static inline

/* The weighted sums of two output pixels, one in each lane; of the last four taps only two have weight if `halved`. */
INLINE_AVX2 __m256i horizontal_2(const uint8_t *source, const int *first, const int16_t *weights, int groups,
                                 int halved) {
  const __m256i taps_01 = _mm256_setr_epi8(PAIR_OF_TAPS(0), PAIR_OF_TAPS(0));
  const __m256i taps_23 = _mm256_setr_epi8(PAIR_OF_TAPS(8), PAIR_OF_TAPS(8));
  __m256i high = _mm256_setzero_si256(), low = high;
  for (int g = 0; g < groups; g++, source += 16, weights += GROUP_STRIDE) {
    __m256i taps = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(at_pixel(source, first[0]))),
                                           _mm_loadu_si128(at_pixel(source, first[1])), 1);
    __m256i factors = _mm256_loadu_si256((const __m256i *)weights);
    __m256i a = _mm256_shuffle_epi8(taps, taps_01);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(a, _mm256_shuffle_epi32(factors, 0x00)));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(a, _mm256_shuffle_epi32(factors, 0xAA)));
    if (halved && g == groups - 1) break;
    __m256i b = _mm256_shuffle_epi8(taps, taps_23);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(b, _mm256_shuffle_epi32(factors, 0x55)));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(b, _mm256_shuffle_epi32(factors, 0xFF)));
  }
  __m256i sums = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
  return _mm256_srli_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(HALF)), WEIGHT_BITS);
}

INLINE_AVX2 void horizontal_row(const uint8_t *source, const struct filter *filter, int groups, int halved,
                                uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(RGB_OF_RGBX);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int o = 0; o < filter->size; o += 4) {
    const int16_t *weights = weights_of(filter, o);
    __m256i a = horizontal_2(source, filter->first + o, weights, groups, halved);
    __m256i b = horizontal_2(source, filter->first + o + 2, weights + 16, groups, halved);
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_setzero_si256());
    __m128i pixels = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)); /* 0 2 . . 1 3 -> 0 1 2 3 */
    _mm_storeu_si128((__m128i *)(out + 3 * (ptrdiff_t)o), _mm_shuffle_epi8(pixels, compact));
  }
}

__attribute__((target("avx2"))) static void horizontal_avx2(const uint8_t *source, const struct filter *filter,
                                                            uint8_t *out) {
  int groups = filter->groups, halved = (filter->most - 1) % 4 < 2;
  if (groups == 1 && halved) /* enlarged, as most crops of small images are */
    horizontal_row(source, filter, 1, 1, out);
  else if (groups == 1)
    horizontal_row(source, filter, 1, 0, out);
  else if (halved)
    horizontal_row(source, filter, groups, 1, out);
  else
    horizontal_row(source, filter, groups, 0, out);
}

/* Sums of 4-lane groups -> bytes in order; interleaving and packing both work within 128-bit lanes, so they cancel. */
#define SETTLE(P, high, low) \
  P##_srli_epi32(P##_add_epi32(P##_add_epi32(P##_slli_epi32(high, LOW_BITS), low), half), WEIGHT_BITS)

__attribute__((target("avx2"))) static __m256i vertical_32(const uint8_t *const *rows, const int16_t *weights,
                                                           int taps, size_t at) {
  const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(HALF);
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
      low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(part[i], lower));
    }
  }
  return _mm256_packus_epi16(
      _mm256_packus_epi32(SETTLE(_mm256, high[0], low[0]), SETTLE(_mm256, high[1], low[1])),
      _mm256_packus_epi32(SETTLE(_mm256, high[2], low[2]), SETTLE(_mm256, high[3], low[3])));
}

__attribute__((target("avx2"))) static void vertical_avx2(const uint8_t *const *rows,
                                                          const struct filter *filter, int o, size_t bytes,
                                                          uint8_t *out) {
  const int16_t *weights = weights_of(filter, o);
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    _mm256_storeu_si256((__m256i *)(out + at), vertical_32(rows, weights, filter->count[o], at));
  if (at < bytes) {
    uint8_t rest[32];
    _mm256_storeu_si256((__m256i *)rest, vertical_32(rows, weights, filter->count[o], at));
    memcpy(out + at, rest, bytes - at);
  }
}

#define TARGET_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl")))

/* As in AVX2, with four pixels to a register. */
TARGET_AVX512 static void horizontal_avx512(const uint8_t *source, const struct filter *filter, uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(RGB_OF_RGBX);
  const __m512i taps_01 = _mm512_broadcast_i32x4(_mm_setr_epi8(PAIR_OF_TAPS(0)));
  const __m512i taps_23 = _mm512_broadcast_i32x4(_mm_setr_epi8(PAIR_OF_TAPS(8)));
  const __m512i half = _mm512_set1_epi32(HALF);
  for (int o = 0; o < filter->size; o += 4) {
    const int *first = filter->first + o;
    const int16_t *weights = weights_of(filter, o);
    const uint8_t *at = source;
    __m512i high = _mm512_setzero_si512(), low = high;
    for (int g = 0; g < filter->groups; g++, at += 16, weights += GROUP_STRIDE) {
      __m512i taps = _mm512_castsi128_si512(_mm_loadu_si128(at_pixel(at, first[0])));
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[1])), 1);
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[2])), 2);
      taps = _mm512_inserti32x4(taps, _mm_loadu_si128(at_pixel(at, first[3])), 3);
      __m512i factors = _mm512_loadu_si512(weights);
      __m512i a = _mm512_shuffle_epi8(taps, taps_01), b = _mm512_shuffle_epi8(taps, taps_23);
      high = _mm512_add_epi32(high, _mm512_madd_epi16(a, _mm512_shuffle_epi32(factors, 0x00)));
      high = _mm512_add_epi32(high, _mm512_madd_epi16(b, _mm512_shuffle_epi32(factors, 0x55)));
      low = _mm512_add_epi32(low, _mm512_madd_epi16(a, _mm512_shuffle_epi32(factors, 0xAA)));
      low = _mm512_add_epi32(low, _mm512_madd_epi16(b, _mm512_shuffle_epi32(factors, 0xFF)));
    }
    __m512i sums = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, LOW_BITS), low), half);
    __m128i pixels = _mm512_cvtepi32_epi8(_mm512_srli_epi32(sums, WEIGHT_BITS));
    _mm_storeu_si128((__m128i *)(out + 3 * (ptrdiff_t)o), _mm_shuffle_epi8(pixels, compact));
  }
}

TARGET_AVX512 static void vertical_avx512(const uint8_t *const *rows, const struct filter *filter, int o,
                                          size_t bytes, uint8_t *out) {
  const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(HALF);
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
        low[i] = _mm512_add_epi32(low[i], _mm512_madd_epi16(part[i], lower));
      }
    }
    __m512i bytes_in_order = _mm512_packus_epi16(
        _mm512_packus_epi32(SETTLE(_mm512, high[0], low[0]), SETTLE(_mm512, high[1], low[1])),
        _mm512_packus_epi32(SETTLE(_mm512, high[2], low[2]), SETTLE(_mm512, high[3], low[3])));
    _mm512_mask_storeu_epi8(out + at, there, bytes_in_order);
  }
}

static const struct kernels avx2 = {horizontal_avx2, vertical_avx2};
static const struct kernels avx512 = {horizontal_avx512, vertical_avx512};

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
