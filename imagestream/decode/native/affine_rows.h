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

/* Where the pixels of one row of the result lie. */
struct places {
  double x[LARGEST_EDGE], y[LARGEST_EDGE];
  /* Of those that lie between pixels of the source all around, for AVX2: */
  int32_t at[LARGEST_EDGE];                      /* the pixel above and to the left, bytes from the source's begin */
  float right[LARGEST_EDGE], down[LARGEST_EDGE]; /* of it, fractions of a pixel */
};

struct range {
  int first, end;
};

typedef void pixel_function(const struct source *source, double x, double y, uint8_t *out);

/* A pixel at a place inside the source, in Pillow's operations. */
void bilinear_pixel(const struct source *source, double x, double y, uint8_t *out);
void bicubic_pixel(const struct source *source, double x, double y, uint8_t *out);

/* The places that are at least `margin` px from the edges; rounding keeps their order, so they follow each other. */
struct range places_inside(const struct places *places, const struct source *source, double margin);

INLINE_ANY void find_places(const double *m, int row, int width, struct places *places) {
  double x_row = m[1] * (row + 0.5), y_row = m[4] * (row + 0.5);
  double m0 = m[0], m2 = m[2], m3 = m[3], m5 = m[5];
  for (int x = 0; x < width; x++) {
    places->x[x] = (m0 * (x + 0.5) + x_row) + m2;
    places->y[x] = (m3 * (x + 0.5) + y_row) + m5;
  }
}

#ifdef HAVE_X86
/* A run of pixels that have those that they are made of all around. A byte past it is written. */
void run_avx2(const struct affine *affine, const struct source *source, int row, struct places *places,
              struct range *all, struct range *run, uint8_t *out);
#endif

#endif
