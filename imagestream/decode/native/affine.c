/* Image.transform(size, AFFINE, ...) of RGB images; see affine.h.
 *
 * Pillow works in double precision where it interpolates and in 16.16 fixed point where it takes the nearest pixel
 * (src/libImaging/Geometry.c). Here each value comes out of the same operations in the same order, so pixels are equal
 * to the bit; what differs is that a row's coordinates are worked out together, pixels that lie outside are found once a
 * row, and those that a whole number of pixels is between are copied. */
#include "affine.h"

#include "affine_rows.h"


#include <math.h>
#include <string.h>


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

void bilinear_pixel(const struct source *source, double x, double y, uint8_t *out) {
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

void bicubic_pixel(const struct source *source, double x, double y, uint8_t *out) {
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

/* The pixels of a row for which one coordinate lies in [least, end). They follow each other, for rounding keeps the
 * order of (step * (i + 1/2) + row) + first. */
static struct range within_bounds(double step, double row, double first, int count, double least, double end) {
  int bounds[2];
  for (int i = 0; i < 2; i++) {
    int low = 0, high = count;
    while (low < high) {
      int middle = (low + high) / 2;
      double place = (step * (middle + 0.5) + row) + first;
      if (step >= 0 ? place >= (i ? end : least) : place < (i ? least : end))
        high = middle;
      else
        low = middle + 1;
    }
    bounds[i] = low;
  }
  return (struct range){bounds[0], bounds[1]};
}

/* The pixels that lie at least `margin` px from the source's edges. */
static struct range inside(const struct line *line, const struct source *source, double margin) {
  int count = source->width;
  struct range x = within_bounds(line->x_step, line->x_row, line->x_first, count, margin, source->width - margin);
  struct range y = within_bounds(line->y_step, line->y_row, line->y_first, count, margin, source->height - margin);
  struct range both = {x.first > y.first ? x.first : y.first, x.end < y.end ? x.end : y.end};
  return both.first < both.end ? both : (struct range){count, count};
}

static void each(pixel_function *pixel, const struct line *line, const struct source *source, int first, int end,
                 uint8_t *out) {
  for (int i = first; i < end; i++) pixel(source, x_of(line, i), y_of(line, i), out + 3 * (ptrdiff_t)i);
}

/* One row of the result: the colour, pixels near an edge, those all around which the source has pixels, and back. */
static void row_between(const struct affine *affine, const struct source *source, int row, int has_avx2, uint8_t *out) {
  int is_cubic = affine->resample == BICUBIC;
  pixel_function *pixel = is_cubic ? bicubic_pixel : bilinear_pixel;
  struct line line = line_of(affine->matrix, row);
  struct range all = inside(&line, source, 0.0), run = {all.end, all.end};
#ifdef HAVE_X86
  if (has_avx2) {
    run = inside(&line, source, is_cubic ? 1.5 : 0.5);
    if (run.end == source->width) run.end--; /* for the byte past the run */
    run.end -= (run.end - run.first) % 2;    /* it takes two at a time */
    if (run.end <= run.first)
      run = (struct range){all.end, all.end};
    else
      run_avx2(affine, source, row, run, out);
  }
#endif
  fill_pixels(out, 0, all.first, affine->fill);
  each(pixel, &line, source, all.first, run.first, out);
  each(pixel, &line, source, run.end, all.end, out);
  fill_pixels(out, all.end, source->width, affine->fill);
  (void)has_avx2;
}

static void between(const struct affine *affine, const struct source *source, int has_avx2, uint8_t *out) {
  for (int row = 0; row < source->height; row++)
    row_between(affine, source, row, has_avx2, out + 3 * (ptrdiff_t)source->width * row);
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
