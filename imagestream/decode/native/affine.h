/* Pillow's Image.transform(size, AFFINE, ...), which also rotates, shears and shifts. */
#ifndef AFFINE_H
#define AFFINE_H

#include <stdint.h>

enum { PIXEL_SLACK = 16 }; /* bytes past a source that may be read */

struct affine {
  double matrix[6]; /* from a pixel of the result to the source's: x = m0 * x + m1 * y + m2, y = m3 * x + m4 * y + m5 */
  int resample;     /* of enum resample */
  uint8_t fill[3];  /* the colour of what lies outside the source */
};

enum resample { NEAREST = 0, BILINEAR = 2, BICUBIC = 3 }; /* Pillow's numbers */
enum { LARGEST_EDGE = 4096 };

/* Args: source: (height, width, 3), with slack; out: of the same size, another place.
 * Returns 0, or -1 where the matrix leads out of the range of Pillow's own integers, or the filter is another. */
int affine_transform(const struct affine *affine, const uint8_t *source, int width, int height, int has_avx2,
                     uint8_t *out);

#endif
