/* Image.transform(size, AFFINE, ...) of RGB images; see affine.h.
 *
 * Pillow works in double precision where it interpolates and in 16.16 fixed point where it takes the nearest pixel
 * (src/libImaging/Geometry.c). Here each value comes out of the same operations in the same order, so pixels are equal
 * to the bit; what differs is that a row's coordinates are worked out together, pixels that lie outside are found once a
 * row, and those that a whole number of pixels is between are copied. */
#include "affine.h"

#include "resample.h"

#include <math.h>
#include <string.h>

#ifdef HAVE_X86
#include <immintrin.h>
#endif

#define INLINE_ANY __attribute__((always_inline)) static inline

static void fill_pixels(uint8_t *out, int from, int to, const uint8_t *fill) {
  for (int x = from; x < to; x++) memcpy(out + 3 * (ptrdiff_t)x, fill, 3);
}

/* ---- whole numbers of pixels ------------------------------------------------------------------------------------ */

static int is_shift(const double *m) {
  return m[0] == 1 && m[1] == 0 && m[3] == 0 && m[4] == 1 && m[2] == floor(m[2]) && m[5] == floor(m[5]);
}

static int within(double value, int most) {
  return value < -most ? -most : value > most ? most : (int)value;
}

static void shift(const struct affine *affine, const uint8_t *source, int width, int height, uint8_t *out) {
  int by = within(affine->matrix[2], width), down = within(affine->matrix[5], height);
  int first = by < 0 ? -by : 0, end = by < 0 ? width : width - by;
  for (int y = 0; y < height; y++, out += 3 * (ptrdiff_t)width) {
    int row = y + down;
    if (row < 0 || row >= height) {
      fill_pixels(out, 0, width, affine->fill);
      continue;
    }
    fill_pixels(out, 0, first, affine->fill);
    if (end > first)
      memcpy(out + 3 * (ptrdiff_t)first, source + 3 * ((ptrdiff_t)row * width + first + by), 3 * (size_t)(end - first));
    fill_pixels(out, end > first ? end : first, width, affine->fill);
  }
}

/* ---- the nearest pixel ------------------------------------------------------------------------------------------ */

static int is_near(const double *m, double x, double y) {
  return fabs(x * m[0] + y * m[1] + m[2]) < 32768.0 && fabs(x * m[3] + y * m[4] + m[5]) < 32768.0;
}

static uint32_t fixed(double value) {
  return (uint32_t)(int64_t)floor(value * 65536.0 + 0.5);
}

/* Where nothing is rotated or sheared, Pillow adds up in double precision. */
static void nearest_scaled(const double *m, const uint8_t *fill, const uint8_t *source, int width, int height,
                           uint8_t *out) {
  int32_t columns[LARGEST_EDGE];
  double at_x = m[2] + m[0] * 0.5, at_y = m[5] + m[4] * 0.5;
  for (int x = 0; x < width; x++, at_x += m[0]) columns[x] = at_x < 0 || at_x >= width ? -1 : (int32_t)at_x;
  for (int y = 0; y < height; y++, at_y += m[4]) {
    int row = at_y < 0 || at_y >= height ? -1 : (int)at_y;
    for (int x = 0; x < width; x++, out += 3)
      memcpy(out, row < 0 || columns[x] < 0 ? fill : source + 3 * ((ptrdiff_t)row * width + columns[x]), 3);
  }
}

static void nearest(const double *m, const uint8_t *fill, const uint8_t *source, int width, int height, uint8_t *out) {
  uint32_t x_step = fixed(m[0]), x_row = fixed(m[1]), y_step = fixed(m[3]), y_row = fixed(m[4]);
  uint32_t x_first = fixed(m[2] + m[0] * 0.5 + m[1] * 0.5), y_first = fixed(m[5] + m[3] * 0.5 + m[4] * 0.5);
  for (int y = 0; y < height; y++, x_first += x_row, y_first += y_row) {
    uint32_t at_x = x_first, at_y = y_first;
    for (int x = 0; x < width; x++, out += 3, at_x += x_step, at_y += y_step) {
      int32_t column = (int32_t)at_x >> 16, row = (int32_t)at_y >> 16;
      int inside = column >= 0 && column < width && row >= 0 && row < height;
      memcpy(out, inside ? source + 3 * ((ptrdiff_t)row * width + column) : fill, 3);
    }
  }
}

/* ---- between pixels --------------------------------------------------------------------------------------------- */

struct source {
  const uint8_t *pixels;
  int width, height;
};

static int floor_of(double place) {
  int whole = (int)place;
  return whole - (place < whole);
}

static int clamp(int at, int size) {
  return at < 0 ? 0 : at < size ? at : size - 1;
}

static const uint8_t *row_of(const struct source *source, int row) {
  return source->pixels + 3 * (ptrdiff_t)clamp(row, source->height) * source->width;
}

/* A pixel at a place inside the source, in Pillow's operations. */
static void bilinear_pixel(const struct source *source, double x, double y, uint8_t *out) {
  x -= 0.5, y -= 0.5;
  int column = floor_of(x), row = floor_of(y);
  int left = 3 * clamp(column, source->width), right = 3 * clamp(column + 1, source->width);
  const uint8_t *above = row_of(source, row), *below = row_of(source, row + 1);
  x -= column, y -= row;
  for (int c = 0; c < 3; c++) {
    double v1 = above[left + c] + (above[right + c] - above[left + c]) * x;
    double v2 = below[left + c] + (below[right + c] - below[left + c]) * x;
    out[c] = (uint8_t)(v1 + (v2 - v1) * y);
  }
}

static double cubic(double v1, double v2, double v3, double v4, double d) {
  double p2 = -v1 + v3, p3 = 2 * (v1 - v2) + v3 - v4, p4 = -v1 + v2 - v3 + v4;
  return v2 + d * (p2 + d * (p3 + d * p4));
}

static void bicubic_pixel(const struct source *source, double x, double y, uint8_t *out) {
  const uint8_t *rows[4];
  int columns[4];
  x -= 0.5, y -= 0.5;
  int column = floor_of(x), row = floor_of(y);
  x -= column, y -= row;
  for (int i = 0; i < 4; i++) {
    columns[i] = 3 * clamp(column - 1 + i, source->width);
    rows[i] = row_of(source, row - 1 + i);
  }
  for (int c = 0; c < 3; c++) {
    double v[4];
    for (int i = 0; i < 4; i++) {
      const uint8_t *in = rows[i] + c;
      v[i] = cubic(in[columns[0]], in[columns[1]], in[columns[2]], in[columns[3]], x);
    }
    double level = cubic(v[0], v[1], v[2], v[3], y);
    out[c] = (uint8_t)(level <= 0.0 ? 0.0 : level >= 255.0 ? 255.0 : level);
  }
}

/* Where the pixels of one row of the result lie. */
struct places {
  double x[LARGEST_EDGE], y[LARGEST_EDGE];
  /* Of those that lie between pixels of the source all around, for AVX2: */
  int32_t at[LARGEST_EDGE];                       /* the pixel above and to the left, bytes from the source's begin */
  float right[LARGEST_EDGE], down[LARGEST_EDGE]; /* of it, fractions of a pixel */
};

struct range {
  int first, end;
};

INLINE_ANY void find_places(const double *m, int row, int width, struct places *places) {
  double x_row = m[1] * (row + 0.5), y_row = m[4] * (row + 0.5);
  double m0 = m[0], m2 = m[2], m3 = m[3], m5 = m[5];
  for (int x = 0; x < width; x++) {
    places->x[x] = (m0 * (x + 0.5) + x_row) + m2;
    places->y[x] = (m3 * (x + 0.5) + y_row) + m5;
  }
}

/* Of numbers that only grow or only fall: which of them lie in [least, end). */
static struct range between_bounds(const double *numbers, int count, double least, double end) {
  int grow = numbers[count - 1] >= numbers[0], bounds[2];
  for (int i = 0; i < 2; i++) {
    int low = 0, high = count;
    while (low < high) {
      int middle = (low + high) / 2;
      int passed = grow ? numbers[middle] >= (i ? end : least) : numbers[middle] < (i ? least : end);
      if (passed)
        high = middle;
      else
        low = middle + 1;
    }
    bounds[i] = low;
  }
  return (struct range){bounds[0], bounds[1]};
}

/* The places that are at least `margin` px from the edges; rounding keeps their order, so they follow each other. */
static struct range inside(const struct places *places, const struct source *source, double margin) {
  struct range x = between_bounds(places->x, source->width, margin, source->width - margin);
  struct range y = between_bounds(places->y, source->width, margin, source->height - margin);
  struct range both = {x.first > y.first ? x.first : y.first, x.end < y.end ? x.end : y.end};
  return both.first < both.end ? both : (struct range){source->width, source->width};
}

typedef void pixel_function(const struct source *source, double x, double y, uint8_t *out);

static void each(pixel_function *pixel, const struct places *places, const struct source *source, int first, int end,
                 uint8_t *out) {
  for (int i = first; i < end; i++) pixel(source, places->x[i], places->y[i], out + 3 * (ptrdiff_t)i);
}

#ifdef HAVE_X86

/* Here single precision does for most pixels. Where a level comes out so near to a whole number that the error might
 * decide which one it is cut off to, Pillow's own operations do it again. */

/* Most that single precision errs by, in levels: 1.3e-4, of weights and sums of at most 255; of cubics 4.1e-4, for their
 * weights add up to 1.5 without their signs. */
#define LINEAR_DOUBT (1.0f / 4096)
#define CUBIC_DOUBT (1.0f / 1024)

INLINE_AVX2 void take_apart(const struct source *source, struct range range, int back, struct places *places) {
  int width = source->width;
  for (int i = range.first; i < range.end; i++) { /* here all places are at least half a pixel from 0 */
    double x = places->x[i] - 0.5, y = places->y[i] - 0.5;
    int32_t column = (int32_t)x, row = (int32_t)y;
    places->at[i] = 3 * ((row - back) * width + column - back);
    places->right[i] = (float)(x - column), places->down[i] = (float)(y - row);
  }
}

/* Write a pixel's levels, and a fourth byte; return whether they are certain. */
INLINE_AVX2 int settle(__m128 levels, float doubt, uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128 most = _mm_set1_ps(255.0f), margin = _mm_set1_ps(doubt), least = _mm_setzero_ps();
  __m128 low = _mm_min_ps(_mm_max_ps(_mm_sub_ps(levels, margin), least), most);
  __m128 high = _mm_min_ps(_mm_max_ps(_mm_add_ps(levels, margin), least), most);
  __m128i whole = _mm_cvttps_epi32(low), other = _mm_cvttps_epi32(high);
  int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(whole, compact));
  memcpy(out, &pixel, sizeof pixel);
  return (_mm_movemask_epi8(_mm_cmpeq_epi32(whole, other)) & 0xFFF) == 0xFFF;
}

/* Whether four pixels of four rows have one colour, which a cubic then gives exactly. */
static int are_flat(const uint8_t *pixels, size_t stride) {
  if (memcmp(pixels, pixels + 3, 9)) return 0;
  for (size_t row = 1; row < 4; row++)
    if (memcmp(pixels, pixels + stride * row, 12)) return 0;
  return 1;
}

/* Two rows' pixels and those to their right, eight bytes of each row. */
INLINE_AVX2 void bilinear_run(const struct places *places, const struct source *source, struct range range,
                              uint8_t *out) {
  const __m256i left = _mm256_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, 1, -1,
                                        -1, -1, 2, -1, -1, -1, -1, -1, -1, -1);
  const __m256i right = _mm256_setr_epi8(3, -1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1, -1, -1, -1, -1, 3, -1, -1, -1, 4,
                                         -1, -1, -1, 5, -1, -1, -1, -1, -1, -1, -1);
  size_t stride = 3 * (size_t)source->width;
  for (int i = range.first; i < range.end; i++) {
    const uint8_t *at = source->pixels + places->at[i];
    uint8_t *pixel = out + 3 * (ptrdiff_t)i;
    __m256i rows = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)at)),
                                           _mm_loadl_epi64((const __m128i *)(at + stride)), 1);
    __m256i from = _mm256_shuffle_epi8(rows, left), to = _mm256_shuffle_epi8(rows, right);
    __m256 across = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(to, from)), _mm256_set1_ps(places->right[i]));
    across = _mm256_add_ps(_mm256_cvtepi32_ps(from), across);
    __m128 above = _mm256_castps256_ps128(across), below = _mm256_extractf128_ps(across, 1);
    __m128 levels = _mm_add_ps(above, _mm_mul_ps(_mm_sub_ps(below, above), _mm_set1_ps(places->down[i])));
    if (settle(levels, LINEAR_DOUBT, pixel)) continue;
    __m256i change = _mm256_sub_epi32(to, from);
    if (_mm256_testz_si256(change, change) && !_mm_movemask_ps(_mm_cmpneq_ps(above, below)))
      memcpy(pixel, at, 3); /* one colour, of which single precision has made no more than that */
    else
      bilinear_pixel(source, places->x[i], places->y[i], pixel);
  }
}

/* The four weights of a cubic at a distance from the second pixel. */
INLINE_AVX2 void cubic_weights(float d, float *weights) {
  float square = d * d, cube = square * d;
  weights[0] = 2 * square - cube - d, weights[1] = 1 - 2 * square + cube;
  weights[2] = d + square - cube, weights[3] = cube - square;
}

/* Two rows, four pixels of each: the weighted sum of each row. */
INLINE_AVX2 __m256 cubic_rows(const uint8_t *first, const uint8_t *second, const float *weights) {
  const __m128i spread = _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1);
  const __m256i next = _mm256_broadcastsi128_si256(_mm_setr_epi8(3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0));
  __m256i places = _mm256_broadcastsi128_si256(spread);
  __m256i rows = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first)),
                                         _mm_loadu_si128((const __m128i *)second), 1);
  __m256 sum = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++, places = _mm256_add_epi8(places, next))
    sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_shuffle_epi8(rows, places)),
                                           _mm256_set1_ps(weights[i])));
  return sum;
}

INLINE_AVX2 void bicubic_run(const struct places *places, const struct source *source, struct range range,
                             uint8_t *out) {
  size_t stride = 3 * (size_t)source->width;
  for (int i = range.first; i < range.end; i++) {
    const uint8_t *at = source->pixels + places->at[i];
    uint8_t *pixel = out + 3 * (ptrdiff_t)i;
    float across[4], down[4];
    cubic_weights(places->right[i], across), cubic_weights(places->down[i], down);
    __m256 upper = cubic_rows(at, at + stride, across), lower = cubic_rows(at + 2 * stride, at + 3 * stride, across);
    __m128 levels = _mm_mul_ps(_mm256_castps256_ps128(upper), _mm_set1_ps(down[0]));
    levels = _mm_add_ps(levels, _mm_mul_ps(_mm256_extractf128_ps(upper, 1), _mm_set1_ps(down[1])));
    levels = _mm_add_ps(levels, _mm_mul_ps(_mm256_castps256_ps128(lower), _mm_set1_ps(down[2])));
    levels = _mm_add_ps(levels, _mm_mul_ps(_mm256_extractf128_ps(lower, 1), _mm_set1_ps(down[3])));
    if (settle(levels, CUBIC_DOUBT, pixel)) continue;
    if (are_flat(at, stride))
      memcpy(pixel, at, 3);
    else
      bicubic_pixel(source, places->x[i], places->y[i], pixel);
  }
}

/* The rows of the result that lie in the source; of each the places, and the run that has pixels all around. */
__attribute__((target("avx2"))) static void row_avx2(const struct affine *affine, const struct source *source, int row,
                                                     struct places *places, uint8_t *out) {
  int is_cubic = affine->resample == BICUBIC;
  find_places(affine->matrix, row, source->width, places);
  struct range all = inside(places, source, 0.0);
  struct range run = inside(places, source, is_cubic ? 1.5 : 0.5);
  if (run.first == run.end) run = (struct range){all.end, all.end};
  pixel_function *pixel = is_cubic ? bicubic_pixel : bilinear_pixel;
  if (run.end > run.first) run.end--; /* a run writes a byte past its end */
  take_apart(source, run, is_cubic, places);
  fill_pixels(out, 0, all.first, affine->fill);
  each(pixel, places, source, all.first, run.first, out);
  if (is_cubic)
    bicubic_run(places, source, run, out);
  else
    bilinear_run(places, source, run, out);
  each(pixel, places, source, run.end, all.end, out);
  fill_pixels(out, all.end, source->width, affine->fill);
}

#endif

static void row_portable(const struct affine *affine, const struct source *source, int row, struct places *places,
                         uint8_t *out) {
  find_places(affine->matrix, row, source->width, places);
  struct range all = inside(places, source, 0.0);
  fill_pixels(out, 0, all.first, affine->fill);
  each(affine->resample == BICUBIC ? bicubic_pixel : bilinear_pixel, places, source, all.first, all.end, out);
  fill_pixels(out, all.end, source->width, affine->fill);
}

static void between(const struct affine *affine, const struct source *source, int has_avx2, uint8_t *out) {
  struct places places;
  for (int row = 0; row < source->height; row++, out += 3 * (ptrdiff_t)source->width) {
#ifdef HAVE_X86
    if (has_avx2) {
      row_avx2(affine, source, row, &places, out);
      continue;
    }
#endif
    row_portable(affine, source, row, &places, out);
  }
  (void)has_avx2;
}

int affine_transform(const struct affine *affine, const uint8_t *source, int width, int height, int has_avx2,
                     uint8_t *out) {
  const double *m = affine->matrix;
  if (!is_near(m, 0, 0) || !is_near(m, width, height) || !is_near(m, 0, height) || !is_near(m, width, 0)) return -1;
  if (is_shift(m))
    shift(affine, source, width, height, out);
  else if (affine->resample == NEAREST && m[1] == 0 && m[3] == 0)
    nearest_scaled(m, affine->fill, source, width, height, out);
  else if (affine->resample == NEAREST)
    nearest(m, affine->fill, source, width, height, out);
  else if (affine->resample == BILINEAR || affine->resample == BICUBIC)
    between(affine, &(struct source){source, width, height}, has_avx2, out);
  else
    return -1;
  return 0;
}
