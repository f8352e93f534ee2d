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

/* Where the pixels of one row of the result lie in the source. */
struct places {
  double x[LARGEST_EDGE], y[LARGEST_EDGE]; /* the fractions, once they are taken apart */
  int32_t rows[2][LARGEST_EDGE];           /* the row above and the one below, bytes from the source's begin */
  int32_t columns[2][LARGEST_EDGE];        /* the column to the left and the one to the right, bytes */
};

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
  return (uint32_t)(int32_t)floor(value * 65536.0 + 0.5);
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

/* Fill `x` and `y` of all of the row, and narrow [*first, *end) down to the pixels that lie inside: they are
 * neighbours, since rounding keeps the order. */
static void find_places(const double *m, int row, int width, int height, struct places *places, int *first, int *end) {
  double x_row = m[1] * (row + 0.5), y_row = m[4] * (row + 0.5);
  double m0 = m[0], m2 = m[2], m3 = m[3], m5 = m[5];
  for (int x = 0; x < width; x++) {
    places->x[x] = (m0 * (x + 0.5) + x_row) + m2;
    places->y[x] = (m3 * (x + 0.5) + y_row) + m5;
  }
#define INSIDE(i) (places->x[i] >= 0 && places->x[i] < width && places->y[i] >= 0 && places->y[i] < height)
  *first = 0, *end = width;
  while (*first < width && !INSIDE(*first)) ++*first;
  while (*end > *first && !INSIDE(*end - 1)) --*end;
#undef INSIDE
}

/* The pixel at or before a place, of the centres of pixels; the rest is left in its stead. */
#define TAKE_APART(place) \
  double from = place - 0.5; \
  int32_t at = (int32_t)from; \
  at -= from < at; \
  place = from - at;

static void take_apart(int first, int end, int width, int height, struct places *places) {
  for (int i = first; i < end; i++) {
    TAKE_APART(places->x[i])
    places->columns[0][i] = 3 * (at < 0 ? 0 : at);
    places->columns[1][i] = 3 * (at + 1 < width ? at + 1 : width - 1);
  }
  for (int i = first; i < end; i++) {
    TAKE_APART(places->y[i])
    places->rows[0][i] = 3 * width * (at < 0 ? 0 : at);
    places->rows[1][i] = 3 * width * (at + 1 < height ? at + 1 : height - 1);
  }
}

static void bilinear_portable(const struct places *places, int first, int end, const uint8_t *source, uint8_t *out) {
  for (int i = first; i < end; i++) {
    const uint8_t *above = source + places->rows[0][i], *below = source + places->rows[1][i];
    int left = places->columns[0][i], right = places->columns[1][i];
    double x = places->x[i], y = places->y[i];
    for (int c = 0; c < 3; c++) {
      double v1 = above[left + c] + (above[right + c] - above[left + c]) * x;
      double v2 = below[left + c] + (below[right + c] - below[left + c]) * x;
      out[3 * i + c] = (uint8_t)(v1 + (v2 - v1) * y);
    }
  }
}

#ifdef HAVE_X86

INLINE_AVX2 __m128i levels(const uint8_t *pixel) {
  int32_t four;
  memcpy(&four, pixel, sizeof four);
  return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
}

/* left + (right - left) * x */
INLINE_AVX2 __m256d between(const uint8_t *row, int left, int right, __m256d x) {
  __m128i from = levels(row + left), to = levels(row + right);
  return _mm256_add_pd(_mm256_cvtepi32_pd(from), _mm256_mul_pd(_mm256_cvtepi32_pd(_mm_sub_epi32(to, from)), x));
}

/* Writes a fourth byte past each pixel, but the last. */
__attribute__((target("avx2"))) static void bilinear_avx2(const struct places *places, int first, int end,
                                                          const uint8_t *source, uint8_t *out) {
  const __m128i compact = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int i = first; i < end; i++) {
    const uint8_t *above = source + places->rows[0][i], *below = source + places->rows[1][i];
    int left = places->columns[0][i], right = places->columns[1][i];
    __m256d x = _mm256_set1_pd(places->x[i]), y = _mm256_set1_pd(places->y[i]);
    __m256d v1 = between(above, left, right, x), v2 = between(below, left, right, x);
    __m256d level = _mm256_add_pd(v1, _mm256_mul_pd(_mm256_sub_pd(v2, v1), y));
    int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_cvttpd_epi32(level), compact));
    memcpy(out + 3 * (ptrdiff_t)i, &pixel, i + 1 < end ? 4 : 3);
  }
}

#endif

static void bilinear(const struct affine *affine, const uint8_t *source, int width, int height, int has_avx2,
                     uint8_t *out) {
  struct places places;
  int first, end;
  for (int y = 0; y < height; y++, out += 3 * (ptrdiff_t)width) {
    find_places(affine->matrix, y, width, height, &places, &first, &end);
    take_apart(first, end, width, height, &places);
    fill_pixels(out, 0, first, affine->fill);
#ifdef HAVE_X86
    if (has_avx2)
      bilinear_avx2(&places, first, end, source, out);
    else
#endif
      bilinear_portable(&places, first, end, source, out);
    fill_pixels(out, end, width, affine->fill);
  }
  (void)has_avx2;
}

/* ---- cubics ----------------------------------------------------------------------------------------------------- */

static double cubic(double v1, double v2, double v3, double v4, double d) {
  double p2 = -v1 + v3, p3 = 2 * (v1 - v2) + v3 - v4, p4 = -v1 + v2 - v3 + v4;
  return v2 + d * (p2 + d * (p3 + d * p4));
}

static int clamp(int at, int size) {
  return at < 0 ? 0 : at < size ? at : size - 1;
}

/* One pixel at a place inside the source. */
static void bicubic_pixel(double x, double y, const uint8_t *source, int width, int height, uint8_t *out) {
  x -= 0.5, y -= 0.5;
  int column = (int)floor(x), row = (int)floor(y), columns[4];
  x -= column, y -= row;
  for (int i = 0; i < 4; i++) columns[i] = 3 * clamp(column - 1 + i, width);
  for (int c = 0; c < 3; c++) {
    double v[4];
    for (int i = 0; i < 4; i++) {
      int at = row - 1 + i;
      if (i && (at < 0 || at >= height)) { /* Pillow's: the row before, be it clamped itself */
        v[i] = v[i - 1];
        continue;
      }
      const uint8_t *in = source + 3 * (ptrdiff_t)clamp(at, height) * width + c;
      v[i] = cubic(in[columns[0]], in[columns[1]], in[columns[2]], in[columns[3]], x);
    }
    double level = cubic(v[0], v[1], v[2], v[3], y);
    out[c] = (uint8_t)(level <= 0.0 ? 0.0 : level >= 255.0 ? 255.0 : level);
  }
}

static void bicubic(const struct affine *affine, const uint8_t *source, int width, int height, uint8_t *out) {
  struct places places;
  int first, end;
  for (int y = 0; y < height; y++, out += 3 * (ptrdiff_t)width) {
    find_places(affine->matrix, y, width, height, &places, &first, &end);
    fill_pixels(out, 0, first, affine->fill);
    for (int x = first; x < end; x++)
      bicubic_pixel(places.x[x], places.y[x], source, width, height, out + 3 * (ptrdiff_t)x);
    fill_pixels(out, end, width, affine->fill);
  }
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
  else if (affine->resample == BILINEAR)
    bilinear(affine, source, width, height, has_avx2, out);
  else if (affine->resample == BICUBIC)
    bicubic(affine, source, width, height, out);
  else
    return -1;
  return 0;
}
