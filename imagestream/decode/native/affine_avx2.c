/* Affine transforms that interpolate, by AVX2: the pixels of a row all around which the source has others.
 *
 * Single precision does for most of them. Where a level comes out so near to a whole number that the error might decide
 * which one it is cut off to, Pillow's own operations (affine.c) do it again. */
#include "affine_rows.h"

#ifdef HAVE_X86

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

/* Most that single precision errs by, in levels: 1.3e-4, of weights and sums of at most 255; of cubics 4.1e-4, for their
 * weights add up to 1.5 without their signs. */
#define LINEAR_DOUBT (1.0f / 4096)
#define CUBIC_DOUBT (1.0f / 1024)

/* Where the pixels of a run lie. */
struct places {
  int32_t at[LARGEST_EDGE];                      /* the pixel above and to the left, bytes from the source's begin */
  float right[LARGEST_EDGE], down[LARGEST_EDGE]; /* of it, fractions of a pixel */
};

/* A run, and what its pixels come from. */
struct run {
  const struct source *source;
  struct line line;
  struct range range;
  struct places *places;
};

static uint32_t three_bytes(const uint8_t *pixel) {
  uint32_t four;
  memcpy(&four, pixel, sizeof four);
  return four << 8;
}

/* Whether a square of pixels has one colour, which comes out of every filter as it is. */
static int is_one_colour(const uint8_t *pixels, size_t stride, size_t edge) {
  uint32_t differences = 0, first = three_bytes(pixels);
  for (size_t y = 0; y < edge; y++)
    for (size_t x = 0; x < edge; x++) differences |= three_bytes(pixels + stride * y + 3 * x) ^ first;
  return !differences;
}

/* Work a pixel out again that is in doubt. */
static void redo_at(const struct run *run, int is_cubic, int i, const uint8_t *at, uint8_t *out) {
  if (is_one_colour(at, 3 * (size_t)run->source->width, is_cubic ? 4 : 2))
    memcpy(out, at, 3);
  else
    (is_cubic ? bicubic_pixel : bilinear_pixel)(run->source, x_of(&run->line, i), y_of(&run->line, i), out);
}

static void redo(const struct run *run, int is_cubic, int i, uint8_t *out) {
  redo_at(run, is_cubic, i, run->source->pixels + run->places->at[i], out);
}

/* Write two pixels, one in each lane, and a byte past them; return whether they are certain. Of levels that are `exact`
 * single precision has made no more than they are. */
INLINE_AVX2 int settle(__m256 levels, float doubt, __m256i exact, uint8_t *out) {
  const __m256i compact = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                                    -1, -1));
  __m256 margin = _mm256_set1_ps(doubt);
  __m256i low = _mm256_cvttps_epi32(_mm256_sub_ps(levels, margin));
  __m256i high = _mm256_cvttps_epi32(_mm256_add_ps(levels, margin));
  __m256i bytes = _mm256_shuffle_epi8(high, compact);
  int32_t first = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
  int32_t second = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
  memcpy(out, &first, sizeof first), memcpy(out + 3, &second, sizeof second);
  return _mm256_movemask_epi8(_mm256_or_si256(_mm256_cmpeq_epi32(low, high), exact)) == -1;
}

/* Eight bytes at each of two pixels. */
INLINE_AVX2 __m128i at_two(const uint8_t *first, const uint8_t *second) {
  __m128i low = _mm_loadl_epi64((const __m128i *)first);
  return _mm_unpacklo_epi64(low, _mm_loadl_epi64((const __m128i *)second));
}

/* As numbers, the bytes 0-2 of the first eight in one lane and of the second in the other, or the bytes 3-5. */
#define FIRST(at) at, -1, -1, -1, at + 1, -1, -1, -1, at + 2, -1, -1, -1, -1, -1, -1, -1
INLINE_AVX2 __m256i here(__m256i twice) {
  return _mm256_shuffle_epi8(twice, _mm256_setr_epi8(FIRST(0), FIRST(8)));
}
INLINE_AVX2 __m256i next(__m256i twice) {
  return _mm256_shuffle_epi8(twice, _mm256_setr_epi8(FIRST(3), FIRST(11)));
}

/* Two numbers, one in each lane. */
INLINE_AVX2 __m256 two_numbers(const float *numbers) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(numbers)), _mm_broadcast_ss(numbers + 1), 1);
}

/* from + (to - from) * share, of whole numbers */
INLINE_AVX2 __m256 between(__m256i from, __m256i to, __m256 share) {
  return _mm256_add_ps(_mm256_cvtepi32_ps(from), _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(to, from)), share));
}

/* Which of two pixels' channels are the same as to the right, below and beyond. */
INLINE_AVX2 __m256i same_all_around(__m128i above, __m128i below) {
  __m128i upper = _mm_cmpeq_epi8(above, _mm_srli_epi64(above, 24));
  __m128i lower = _mm_cmpeq_epi8(below, _mm_srli_epi64(below, 24));
  __m128i same = _mm_and_si128(_mm_and_si128(upper, lower), _mm_cmpeq_epi8(above, below));
  return _mm256_cmpgt_epi32(here(_mm256_broadcastsi128_si256(same)), _mm256_setzero_si256());
}

INLINE_AVX2 void bilinear_run(const struct run *run, uint8_t *out) {
  const struct places *places = run->places;
  size_t stride = 3 * (size_t)run->source->width;
  for (int i = run->range.first; i < run->range.end; i += 2) {
    const uint8_t *first = run->source->pixels + places->at[i], *second = run->source->pixels + places->at[i + 1];
    __m128i above = at_two(first, second), below = at_two(first + stride, second + stride);
    __m256i above_twice = _mm256_broadcastsi128_si256(above), below_twice = _mm256_broadcastsi128_si256(below);
    __m256 right = two_numbers(places->right + i);
    __m256 upper = between(here(above_twice), next(above_twice), right);
    __m256 lower = between(here(below_twice), next(below_twice), right);
    __m256 levels = _mm256_add_ps(upper, _mm256_mul_ps(_mm256_sub_ps(lower, upper), two_numbers(places->down + i)));
    if (settle(levels, LINEAR_DOUBT, same_all_around(above, below), out + 3 * (ptrdiff_t)i)) continue;
    redo(run, 0, i, out + 3 * (ptrdiff_t)i), redo(run, 0, i + 1, out + 3 * (ptrdiff_t)i + 3);
  }
}

/* The same where one axis has whole pixels, as sheared images have: each is between that one and another `apart`. */
INLINE_AVX2 void sheared_run(const struct run *run, const float *shares, ptrdiff_t apart, uint8_t *out) {
  const struct places *places = run->places;
  for (int i = run->range.first; i < run->range.end; i += 2) {
    const uint8_t *first = run->source->pixels + places->at[i], *second = run->source->pixels + places->at[i + 1];
    __m256i from = here(_mm256_broadcastsi128_si256(at_two(first, second)));
    __m256i to = here(_mm256_broadcastsi128_si256(at_two(first + apart, second + apart)));
    __m256 levels = between(from, to, two_numbers(shares + i));
    if (settle(levels, LINEAR_DOUBT, _mm256_cmpeq_epi32(from, to), out + 3 * (ptrdiff_t)i)) continue;
    redo(run, 0, i, out + 3 * (ptrdiff_t)i), redo(run, 0, i + 1, out + 3 * (ptrdiff_t)i + 3);
  }
}

enum { SLID = 32 }; /* bytes */

/* Eight levels between those of a pixel and the next, and whether they are certain. */
INLINE_AVX2 __m256i slid_8(const uint8_t *at, __m256 share, __m256i *certain) {
  __m256 margin = _mm256_set1_ps(LINEAR_DOUBT);
  __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
  __m256i to = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(at + 3)));
  __m256 levels = between(from, to, share);
  __m256i low = _mm256_cvttps_epi32(_mm256_sub_ps(levels, margin));
  __m256i high = _mm256_cvttps_epi32(_mm256_add_ps(levels, margin));
  *certain = _mm256_or_si256(_mm256_cmpeq_epi32(low, high), _mm256_cmpeq_epi32(from, to));
  return high;
}

INLINE_AVX2 void slide_32(const struct run *run, const uint8_t *from, int byte, __m256 share, uint8_t *out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing works within lanes */
  __m256i levels[4], certain[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) levels[i] = slid_8(from + byte + 8 * i, share, &certain[i]);
  __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(levels[0], levels[1]),
                                      _mm256_packs_epi32(levels[2], levels[3]));
  _mm256_storeu_si256((__m256i *)(out + byte), _mm256_permutevar8x32_epi32(bytes, order));
  __m256i all = _mm256_and_si256(_mm256_and_si256(certain[0], certain[1]), _mm256_and_si256(certain[2], certain[3]));
  if (_mm256_movemask_epi8(all) == -1) return;
  for (int i = 0; i < 4; i++) {
    int first = (byte + 8 * i) / 3, last = (byte + 8 * i + 7) / 3;
    if (_mm256_movemask_epi8(certain[i]) == -1) continue;
    for (int pixel = first; pixel <= last; pixel++)
      redo_at(run, 0, run->range.first + pixel, from + 3 * (ptrdiff_t)pixel, out + 3 * (ptrdiff_t)pixel);
  }
}

/* A row that is shifted as a whole: all its pixels have the same fraction but for rounding. Returns whether it is safe
 * from that, and has been written. */
INLINE_AVX2 int slide(const struct run *run, uint8_t *out) {
  int first = run->range.first, bytes = 3 * (run->range.end - first);
  double x = x_of(&run->line, first) - 0.5, y = y_of(&run->line, first) - 0.5;
  int column = (int)x, row = (int)y;
  float right = (float)(x - column);
  if (bytes < SLID || right < LINEAR_DOUBT || right > 1 - LINEAR_DOUBT) return 0;
  const uint8_t *from = run->source->pixels + 3 * ((ptrdiff_t)row * run->source->width + column);
  __m256 share = _mm256_set1_ps(right);
  out += 3 * (ptrdiff_t)first;
  for (int byte = 0; byte + SLID <= bytes; byte += SLID) slide_32(run, from, byte, share, out);
  if (bytes % SLID) slide_32(run, from, bytes - SLID, share, out);
  return 1;
}

/* ---- cubics ----------------------------------------------------------------------------------------------------- */

/* The four weights of each pixel of a run, by their distance from the second of four pixels. */
struct cubics {
  float weights[LARGEST_EDGE][4];
};

INLINE_AVX2 void find_weights(const float *distances, struct range range, struct cubics *cubics) {
  for (int i = range.first; i < range.end; i++) {
    float d = distances[i], square = d * d, cube = square * d;
    cubics->weights[i][0] = 2 * square - cube - d, cubics->weights[i][1] = 1 - 2 * square + cube;
    cubics->weights[i][2] = d + square - cube, cubics->weights[i][3] = cube - square;
  }
}

/* The twelve bytes of four pixels, in each lane, as three times four numbers. */
#define QUARTER(at) at, -1, -1, -1, at + 1, -1, -1, -1, at + 2, -1, -1, -1, at + 3, -1, -1, -1
#define NUMBERS(rows, at) \
  _mm256_cvtepi32_ps(_mm256_shuffle_epi8(rows, _mm256_setr_epi8(QUARTER(at), QUARTER(at))))

/* One of the four rows: added to the sums by its weight, which is the same for all of a lane. */
#define ADD_ROW(row) \
  { \
    __m256i rows = _mm256_inserti128_si256( \
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(first + (row) * stride))), \
        _mm_loadu_si128((const __m128i *)(second + (row) * stride)), 1); \
    __m256 weight = _mm256_permute_ps(down, 0x55 * (row)); \
    a = _mm256_add_ps(a, _mm256_mul_ps(NUMBERS(rows, 0), weight)); \
    b = _mm256_add_ps(b, _mm256_mul_ps(NUMBERS(rows, 4), weight)); \
    c = _mm256_add_ps(c, _mm256_mul_ps(NUMBERS(rows, 8), weight)); \
  }

#define SHIFTED(high, low, numbers) \
  _mm256_castsi256_ps(_mm256_alignr_epi8(_mm256_castps_si256(high), _mm256_castps_si256(low), 4 * (numbers)))

/* Two pixels, one in each lane: down first, of four pixels at once, then across. */
INLINE_AVX2 __m256 bicubic(const uint8_t *first, const uint8_t *second, size_t stride, __m256 across, __m256 down) {
  __m256 a = _mm256_setzero_ps(), b = a, c = a; /* rgbr gbrg brgb */
  ADD_ROW(0) ADD_ROW(1) ADD_ROW(2) ADD_ROW(3)
  a = _mm256_mul_ps(a, _mm256_permute_ps(across, 0x40)); /* of weights 0 0 0 1 */
  b = _mm256_mul_ps(b, _mm256_permute_ps(across, 0xA5)); /* 1 1 2 2 */
  c = _mm256_mul_ps(c, _mm256_permute_ps(across, 0xFE)); /* 2 3 3 3 */
  return _mm256_add_ps(_mm256_add_ps(a, SHIFTED(b, a, 3)), _mm256_add_ps(SHIFTED(c, b, 2), SHIFTED(c, c, 1)));
}

INLINE_AVX2 void bicubic_run(const struct run *run, uint8_t *out) {
  const struct places *places = run->places;
  /* What is clipped is certain, and so is a lane's fourth number, which is none. */
  const __m256 least = _mm256_set1_ps(CUBIC_DOUBT), most = _mm256_set1_ps(255.0f + CUBIC_DOUBT);
  const __m256i fourth = _mm256_setr_epi32(0, 0, 0, -1, 0, 0, 0, -1);
  size_t stride = 3 * (size_t)run->source->width;
  struct cubics across, down;
  find_weights(places->right, run->range, &across), find_weights(places->down, run->range, &down);
  for (int i = run->range.first; i < run->range.end; i += 2) {
    const uint8_t *first = run->source->pixels + places->at[i], *second = run->source->pixels + places->at[i + 1];
    __m256 levels = bicubic(first, second, stride, _mm256_loadu_ps(across.weights[i]), _mm256_loadu_ps(down.weights[i]));
    levels = _mm256_min_ps(_mm256_max_ps(levels, least), most);
    if (settle(levels, CUBIC_DOUBT, fourth, out + 3 * (ptrdiff_t)i)) continue;
    redo(run, 1, i, out + 3 * (ptrdiff_t)i), redo(run, 1, i + 1, out + 3 * (ptrdiff_t)i + 3);
  }
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

INLINE_AVX2 void find_places(const struct run *run, int back) {
  struct places *places = run->places;
  int width = run->source->width;
  for (int i = run->range.first; i < run->range.end; i++) { /* all are at least half a pixel from 0 */
    double x = x_of(&run->line, i) - 0.5, y = y_of(&run->line, i) - 0.5;
    int32_t column = (int32_t)x, row = (int32_t)y;
    places->at[i] = 3 * ((row - back) * width + column - back);
    places->right[i] = (float)(x - column), places->down[i] = (float)(y - row);
  }
}

__attribute__((target("avx2"))) void run_avx2(const struct affine *affine, const struct source *source, int row,
                                              struct range range, uint8_t *out) {
  const double *m = affine->matrix;
  struct places places;
  struct run run = {source, line_of(m, row), range, &places};
  int has_whole_rows = m[3] == 0 && m[4] == 1 && m[5] == (int)m[5];
  if (affine->resample == BILINEAR && has_whole_rows && m[0] == 1 && slide(&run, out)) return;
  find_places(&run, affine->resample == BICUBIC);
  if (affine->resample == BICUBIC)
    bicubic_run(&run, out);
  else if (has_whole_rows)
    sheared_run(&run, places.right, 3, out);
  else if (m[0] == 1 && m[1] == 0 && m[2] == (int)m[2])
    sheared_run(&run, places.down, 3 * (ptrdiff_t)source->width, out);
  else
    bilinear_run(&run, out);
}

#endif
