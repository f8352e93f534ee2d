/* Pillow's antialiased bilinear resize, in its own integers, a row at a time. */
#ifndef RESAMPLE_H
#define RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

#define ROW_ALIGNMENT 64 /* bytes; an AVX-512 register */
#define SOURCE_SLACK(taps) (4 * (size_t)(taps) + 32) /* bytes past a source row that a kernel may read, and ignores */
#define OUTPUT_SLACK 64  /* bytes past an intermediate row that a kernel may write */

/* One axis: output pixel o is the weighted sum of the `count[o]` source pixels from `first[o]`.
 *
 * Weights are fixed point with 22 bits, in groups of four taps: four upper halves (weight >> 11), then the four lower
 * ones (weight & 2047). Both fit 16 bits, so one instruction multiplies and adds two taps of each lane. */
struct filter {
  int size;       /* output pixels */
  int max_taps;   /* largest count, rounded up to a multiple of 4 */
  int *first;     /* (size,), ascending */
  int *count;     /* (size,) */
  int16_t *weights; /* (size, max_taps / 4, 8); weights past count are 0 */
  size_t pixel_capacity, weight_capacity;
};

enum { MAX_TAPS = 8192 }; /* keeps rounded weights from adding up to more than 255 can be multiplied by */

/* Plan the axis that maps [from, to) of `source_size` pixels onto `size`; 0, or -1 when out of memory or bounds. */
int filter_plan(struct filter *filter, int source_size, float from, float to, int size);
void filter_free(struct filter *filter);

enum path { PATH_AUTO = 0, PATH_PORTABLE = 1, PATH_AVX2 = 2, PATH_AVX512 = 3 };

/* What turns rows into the image; every path yields the same bytes. */
struct kernels {
  /* RGBX source row -> RGB row of filter->size pixels, from left to right or mirrored. */
  void (*horizontal)(const uint8_t *source, const struct filter *filter, int mirrored, uint8_t *out);
  /* Weighted sum of rows of `bytes` bytes; `rows` and `weights` hold `taps`, a multiple of 4; `out` is not exceeded. */
  void (*vertical)(const uint8_t *const *rows, const int16_t *weights, int taps, size_t bytes, uint8_t *out);
};

/* Return the kernels of a path, or of the best that this processor has; NULL where it lacks them. */
const struct kernels *kernels_for(enum path path);

#endif
