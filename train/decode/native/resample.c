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

static int reserve(struct filter *filter, int size, int max_taps) {
  size_t pixels = (size_t)size, weights = (size_t)size * (size_t)max_taps * 2;
  if (pixels > filter->pixel_capacity) {
    filter_free(filter);
    filter->first = malloc(pixels * sizeof *filter->first);
    filter->count = malloc(pixels * sizeof *filter->count);
    if (!filter->first || !filter->count) return -1;
    filter->pixel_capacity = pixels;
  }
  if (weights > filter->weight_capacity) {
    free(filter->weights);
    filter->weight_capacity = 0;
    filter->weights = malloc(weights * sizeof *filter->weights);
    if (!filter->weights) return -1;
    filter->weight_capacity = weights;
  }
  return 0;
}

int filter_plan(struct filter *filter, int source_size, float from, float to, int size) {
  double scale = (double)(to - from) / size;
  double stretch = scale < 1.0 ? 1.0 : scale; /* upscaling interpolates between neighbours */
  double support = stretch;
  if (source_size < 1 || size < 1 || !(to > from) || support > MAX_TAPS / 2 - 4) return -1;
  int max_taps = ((int)support + 2) * 2 + 1;
  max_taps = (max_taps + 3) / 4 * 4;
  double shares[MAX_TAPS];
  if (max_taps > MAX_TAPS || reserve(filter, size, max_taps)) return -1;
  filter->size = size;
  filter->max_taps = max_taps;
  memset(filter->weights, 0, (size_t)size * (size_t)max_taps * 2 * sizeof *filter->weights);
  for (int o = 0; o < size; o++) {
    double center = from + (o + 0.5) * scale, inverse = 1.0 / stretch, sum = 0.0;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    if (first < 0) first = 0;
    if (end > source_size) end = source_size;
    int count = end - first;
    if (count < 1 || count > max_taps) return -1;
    for (int t = 0; t < count; t++) sum += shares[t] = triangle((t + first - center + 0.5) * inverse);
    int16_t *weights = filter->weights + (size_t)o * (size_t)max_taps * 2;
    for (int t = 0; t < count; t++) {
      double share = sum != 0.0 ? shares[t] / sum : shares[t];
      int weight = (int)(0.5 + share * (1 << WEIGHT_BITS));
      weights[t / 4 * 8 + t % 4] = (int16_t)(weight >> LOW_BITS);
      weights[t / 4 * 8 + t % 4 + 4] = (int16_t)(weight & LOW_MASK);
    }
    filter->first[o] = first;
    filter->count[o] = count;
  }
  return 0;
}

void filter_free(struct filter *filter) {
  free(filter->first), free(filter->count), free(filter->weights);
  memset(filter, 0, sizeof *filter);
}

/* ---- portable kernels ----------------------------------------------------------------------------------------- */

static uint32_t weight_of(const int16_t *weights, int tap) {
  const int16_t *group = weights + tap / 4 * 8 + tap % 4;
  return ((uint32_t)group[0] << LOW_BITS) + (uint32_t)group[4];
}

static void horizontal_portable(const uint8_t *source, const struct filter *filter, int mirrored, uint8_t *out) {
  for (int o = 0; o < filter->size; o++) {
    int x = mirrored ? filter->size - 1 - o : o;
    const uint8_t *pixel = source + 4 * (ptrdiff_t)filter->first[x];
    const int16_t *weights = filter->weights + (size_t)x * (size_t)filter->max_taps * 2;
    uint32_t r = HALF, g = HALF, b = HALF;
    for (int t = 0; t < filter->count[x]; t++, pixel += 4) {
      uint32_t weight = weight_of(weights, t);
      r += pixel[0] * weight, g += pixel[1] * weight, b += pixel[2] * weight;
    }
    out[3 * o] = (uint8_t)(r >> WEIGHT_BITS);
    out[3 * o + 1] = (uint8_t)(g >> WEIGHT_BITS);
    out[3 * o + 2] = (uint8_t)(b >> WEIGHT_BITS);
  }
}

static void vertical_portable(const uint8_t *const *rows, const int16_t *weights, int taps, size_t bytes,
                              uint8_t *out) {
  enum { STEP = 256 };
  uint32_t sums[STEP];
  for (size_t at = 0; at < bytes; at += STEP) {
    size_t step = bytes - at < STEP ? bytes - at : STEP;
    for (size_t i = 0; i < step; i++) sums[i] = HALF;
    for (int t = 0; t < taps; t++) {
      const uint8_t *row = rows[t] + at;
      uint32_t weight = weight_of(weights, t);
      if (weight)
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

/* Two taps of one pixel in each 128-bit lane: (r0 r1 g0 g1 b0 b1 x0 x1) as 16-bit numbers. */
#define PAIR_OF_TAPS(at) at, -1, at + 4, -1, at + 1, -1, at + 5, -1, at + 2, -1, at + 6, -1, at + 3, -1, at + 7, -1

__attribute__((target("avx2"))) static void store_pixel(uint8_t *out, __m128i sums) {
  const __m128i lowest_bytes = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  __m128i rounded = _mm_srli_epi32(_mm_add_epi32(sums, _mm_set1_epi32(HALF)), WEIGHT_BITS);
  int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(rounded, lowest_bytes));
  memcpy(out, &pixel, sizeof pixel); /* the fourth byte is overwritten by the next pixel, or falls into the slack */
}

__attribute__((target("avx2"))) static void horizontal_avx2(const uint8_t *source, const struct filter *filter,
                                                            int mirrored, uint8_t *out) {
  const __m256i spread = _mm256_setr_epi8(PAIR_OF_TAPS(0), PAIR_OF_TAPS(8));
  const __m256i upper = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), lower = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
  for (int o = 0; o < filter->size; o++) {
    int x = mirrored ? filter->size - 1 - o : o;
    const uint8_t *pixel = source + 4 * (ptrdiff_t)filter->first[x];
    const int16_t *weights = filter->weights + (size_t)x * (size_t)filter->max_taps * 2;
    __m256i high = _mm256_setzero_si256(), low = high;
    for (int t = 0; t < filter->count[x]; t += 4, pixel += 16, weights += 8) {
      __m256i taps = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel));
      __m256i factors = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)weights));
      taps = _mm256_shuffle_epi8(taps, spread);
      high = _mm256_add_epi32(high, _mm256_madd_epi16(taps, _mm256_permutevar8x32_epi32(factors, upper)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(taps, _mm256_permutevar8x32_epi32(factors, lower)));
    }
    __m256i sums = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
    store_pixel(out + 3 * o, _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
  }
}

/* Sums of 4-lane groups -> bytes in order; interleaving and packing both work within 128-bit lanes, so they cancel. */
#define SETTLE(P, high, low) P##_srli_epi32(P##_add_epi32(P##_add_epi32(P##_slli_epi32(high, LOW_BITS), low), half), WEIGHT_BITS)

__attribute__((target("avx2"))) static __m256i vertical_32(const uint8_t *const *rows, const int16_t *weights,
                                                           int taps, size_t at) {
  const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(HALF);
  __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
  for (int t = 0; t < taps; t += 2) {
    const int16_t *pair = weights + t / 4 * 8 + t % 4;
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

__attribute__((target("avx2"))) static void vertical_avx2(const uint8_t *const *rows, const int16_t *weights, int taps,
                                                          size_t bytes, uint8_t *out) {
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    _mm256_storeu_si256((__m256i *)(out + at), vertical_32(rows, weights, taps, at));
  if (at < bytes) {
    uint8_t rest[32];
    _mm256_storeu_si256((__m256i *)rest, vertical_32(rows, weights, taps, at));
    memcpy(out + at, rest, bytes - at);
  }
}

#define TARGET_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl")))

/* Two output pixels at a time, one in each half of a register. */
TARGET_AVX512 static void horizontal_avx512(const uint8_t *source, const struct filter *filter, int mirrored,
                                            uint8_t *out) {
  const __m512i spread = _mm512_broadcast_i64x4(_mm256_setr_epi8(PAIR_OF_TAPS(0), PAIR_OF_TAPS(8)));
  const __m512i upper = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 8, 8, 8, 8, 9, 9, 9, 9);
  const __m512i lower = _mm512_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3, 10, 10, 10, 10, 11, 11, 11, 11);
  const size_t stride = (size_t)filter->max_taps * 2;
  for (int o = 0; o < filter->size; o += 2) {
    int last = o + 1 < filter->size ? o + 1 : o; /* of an odd size the last pixel is worked out twice */
    int x = mirrored ? filter->size - 1 - o : o, y = mirrored ? filter->size - 1 - last : last;
    const uint8_t *pixel_x = source + 4 * (ptrdiff_t)filter->first[x];
    const uint8_t *pixel_y = source + 4 * (ptrdiff_t)filter->first[y];
    const int16_t *weights_x = filter->weights + (size_t)x * stride, *weights_y = filter->weights + (size_t)y * stride;
    int count = filter->count[x] < filter->count[y] ? filter->count[y] : filter->count[x];
    __m512i high = _mm512_setzero_si512(), low = high;
    for (int t = 0; t < count; t += 4, pixel_x += 16, pixel_y += 16, weights_x += 8, weights_y += 8) {
      __m512i taps = _mm512_inserti64x4(
          _mm512_castsi256_si512(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel_x))),
          _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel_y)), 1);
      __m512i factors = _mm512_inserti64x4(
          _mm512_castsi256_si512(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)weights_x))),
          _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)weights_y)), 1);
      taps = _mm512_shuffle_epi8(taps, spread);
      high = _mm512_add_epi32(high, _mm512_madd_epi16(taps, _mm512_permutexvar_epi32(upper, factors)));
      low = _mm512_add_epi32(low, _mm512_madd_epi16(taps, _mm512_permutexvar_epi32(lower, factors)));
    }
    __m512i sums = _mm512_add_epi32(_mm512_slli_epi32(high, LOW_BITS), low);
    __m256i first = _mm512_castsi512_si256(sums), second = _mm512_extracti64x4_epi64(sums, 1);
    store_pixel(out + 3 * o, _mm_add_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1)));
    store_pixel(out + 3 * last, _mm_add_epi32(_mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1)));
  }
}

TARGET_AVX512 static void vertical_avx512(const uint8_t *const *rows, const int16_t *weights, int taps, size_t bytes,
                                          uint8_t *out) {
  const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(HALF);
  for (size_t at = 0; at < bytes; at += 64) {
    __mmask64 there = bytes - at >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (bytes - at)) - 1;
    __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (int t = 0; t < taps; t += 2) {
      const int16_t *pair = weights + t / 4 * 8 + t % 4;
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
