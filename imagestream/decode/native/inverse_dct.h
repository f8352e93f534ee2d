/* The inverse DCT of two blocks at once. */
#ifndef INVERSE_DCT_H
#define INVERSE_DCT_H

#include <stddef.h>
#include <stdint.h>

/* One block: its coefficients, what to multiply them by, and where its first sample goes. */
struct block {
  const int16_t *coefficients; /* (8, 8) */
  const uint16_t *factors;     /* (8, 8) */
  uint8_t *samples;            /* rows of 8 */
  size_t stride;               /* bytes between them */
};

/* libjpeg's accurate integer inverse DCT (jpeg_idct_islow): the same samples as by its AVX2 code, in AVX-512.
 *
 * Returns 0, or -1 where a coefficient is beyond what an image can have (eight times that), so that numbers of 16 bits
 * overflow, which libjpeg does in a way of its own. */
int inverse_dct_avx512(const struct block *first, const struct block *second);

#endif
