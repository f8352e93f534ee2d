/* What the rows of an affine transform that interpolates have in common; affine.c has them in Pillow's operations. */
#ifndef AFFINE_ROWS_H
#define AFFINE_ROWS_H

#include "affine.h"
#include "resample.h"

#define INLINE_ANY __attribute__((always_inline)) static inline

struct source {
  const uint8_t *pixels; /* (height, width, 3), with slack */
  int width, height;
};

/* One row of the result: where its pixels lie in the source, in Pillow's operations. */
struct line {
  double x_step, x_row, x_first, y_step, y_row, y_first;
};

INLINE_ANY struct line line_of(const double *m, int row) {
  return (struct line){m[0], m[1] * (row + 0.5), m[2], m[3], m[4] * (row + 0.5), m[5]};
}
INLINE_ANY double x_of(const struct line *line, int i) {
  return (line->x_step * (i + 0.5) + line->x_row) + line->x_first;
}
INLINE_ANY double y_of(const struct line *line, int i) {
  return (line->y_step * (i + 0.5) + line->y_row) + line->y_first;
}

/* The pixels of the row from `first` on, before `end`. */
struct range {
  int first, end;
};

typedef void pixel_function(const struct source *source, double x, double y, uint8_t *out);

/* A pixel at a place inside the source, in Pillow's operations. */
void bilinear_pixel(const struct source *source, double x, double y, uint8_t *out);
void bicubic_pixel(const struct source *source, double x, double y, uint8_t *out);

#ifdef HAVE_X86
/* Write an even number of pixels all around which the source has others, and a byte past them. */
void run_avx2(const struct affine *affine, const struct source *source, int row, struct range run, uint8_t *out);
#endif

#endif
