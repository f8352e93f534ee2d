/* Pillow's antialiased bilinear and bicubic resize, in its own integers or coarser ones, a row at a time. */
#ifndef RESAMPLE_H
#define RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(HAVE_X86)
#define HAVE_X86 1
#endif
#ifdef HAVE_X86
#define AVX512 "avx2,avx512f,avx512bw,avx512dq,avx512vl"
#define INLINE_AVX512 __attribute__((target(AVX512), always_inline)) static inline
#define INLINE_AVX2 __attribute__((target("avx2"), always_inline)) static inline
#endif

#define ROW_ALIGNMENT 64 /* bytes; an AVX-512 register */
#define SOURCE_SLACK(groups) (16 * (size_t)(groups) + 32) /* bytes past a source row that kernels may read */
#define OUTPUT_SLACK 64  /* bytes past an intermediate row that a kernel may write */

/* Of a weight's fraction: Pillow's, or as many as one instruction multiplies. Of few taps alone: rounded coarse weights
 * must not add up to more than 255 can be multiplied by. */
enum weight_bits { COARSE = 14, FINE = 22 };
enum { MOST_COARSE_SHRINK = 16 };

/* One axis: output pixel o is the weighted sum of the `count[o]` source pixels from `first[o]`.
 *
 * Weights are fixed point, in groups of four taps: fine ones as four upper halves (weight >> 11), then the four lower
 * ones (weight & 2047); coarse ones whole, then four zeros. All fit 16 bits, so one instruction multiplies and adds two
 * taps of each lane. Four output pixels lie side by side, so that one load brings the same group of taps of each. */
struct filter {
  int bits;         /* of enum weight_bits */
  int is_cubic;     /* then some weights are negative, and sums may lie outside 0-255 */
  int size;         /* output pixels */
  int most;         /* taps of the pixel with the most of them */
  int groups;       /* of four taps, that it has */
  int *first;       /* (size rounded up to 4,) */
  int *count;       /* the same; 0 past size */
  int16_t *weights; /* (size / 4, groups, 4, 8); weights past a pixel's count are 0 */
  size_t pixel_capacity, weight_capacity;
};

enum { MAX_TAPS = 8192 }; /* keeps rounded weights from adding up to more than 255 can be multiplied by */

/* Plan the axis that maps [from, to) of `source_size` pixels onto `whole`, of which `size` from `start` on are wanted,
 * perhaps mirrored. A cubic one needs fine weights.
 * Returns 0, or -1 when out of memory or bounds. */
int filter_plan(struct filter *filter, int source_size, float from, float to, int size, int whole, int start,
                int mirrored, int is_cubic, enum weight_bits bits);
/* Plan the rows of chroma that make the rows of luma that a filter asks for, `down` (1 or 2) of luma to one of chroma,
 * interpolated as libjpeg does: 3/4 of the nearer row and 1/4 of the next one, as far as the image reaches. Rows of
 * chroma are counted from the image's top; `origin` is luma's row 0 counted so, `height` the image's rows of luma.
 * Returns 0, or -1 when out of memory. */
int filter_plan_chroma(struct filter *chroma, const struct filter *luma, int origin, int height, int down);
/* Move all source pixels, where the rows given to the kernels start at another pixel than the plan's. */
void filter_shift(struct filter *filter, int by);
void filter_free(struct filter *filter);

enum path { PATH_AUTO = 0, PATH_PORTABLE = 1, PATH_AVX2 = 2, PATH_AVX512 = 3 };

struct block; /* inverse_dct.h */

/* What turns rows into the image; every path yields the same bytes. */
struct kernels {
  /* RGBX source row -> RGB row of filter->size pixels. */
  void (*horizontal)(const uint8_t *source, const struct filter *filter, uint8_t *out);
  /* Output row o: the weighted sum of 4 * filter->groups rows of `bytes` bytes; `out` is not exceeded. */
  void (*vertical)(const uint8_t *const *rows, const struct filter *filter, int o, size_t bytes, uint8_t *out);
  /* Rows of Y, Cb and Cr -> RGBX. There are `across` (1 or 2) pixels to a sample of chroma, of which the one before and
   * the one after the row must be there. Up to 16 samples past a row may be read, 16 pixels written. */
  void (*colours)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, int across, uint8_t *out);
  /* Two blocks' inverse DCT, or -1 where that is left to libjpeg's; NULL where libjpeg's is as fast. */
  int (*inverse_dct)(const struct block *first, const struct block *second);
};

/* Return the kernels of a path, or of the best that this processor has; NULL where it lacks them. */
const struct kernels *kernels_for(enum path path);

#endif
