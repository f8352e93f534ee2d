/* Y, Cb and Cr resized before the colours are worked out: less work where a crop shrinks, nearly Pillow's pixels. */
#ifndef PLANES_H
#define PLANES_H

#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

#include "huffman.h"
#include "resample.h"

enum {
  MOST_ROWS_OF_MCU = 32, /* 4 blocks of 8; a multiple of all that fit */
  PLANE_MARGIN = 64,     /* bytes before and after the rows in `narrowed` that kernels may read and write */
};

/* One image's rows on their way from the inverse DCT to the result. The memory is the caller's. */
struct planes {
  int across, down;          /* pixels to a sample of chroma: 1 or 2 */
  const struct filter *luma; /* down the rows of Y */
  int origin;                /* the row of the image that is its row 0 */
  struct filter chroma;      /* down the rows of Cb and Cr */
  int width[3];              /* of the rows, in samples */
  int rows, chroma_rows;     /* of the image, from its top, that have been read */
  uint8_t *rings[3];         /* of ring_rows rows: row r lies at place r % ring_rows */
  int ring_rows;
  size_t stride;          /* bytes between rows of a ring */
  const uint8_t **taps;   /* where the rows of one sum lie */
  uint8_t *narrowed[3];   /* a row of each after the vertical filter */
  uint8_t *colours;       /* that row in RGBX */
};

/* Whether an image has planes that can be resized so. Sets across and down; libjpeg's output dimensions must be known. */
int planes_fit(struct planes *planes, struct jpeg_decompress_struct *jpeg);

/* Plan chroma's filter by luma's; returns how many rows the rings need, or -1 when out of memory. */
int planes_plan(struct planes *planes, const struct filter *luma, int origin, int height);

/* Read the next row of MCUs into the rings, or past it where it ends before row `first` of luma.
 *
 * Args: jpeg: with raw_data_out, started; entropy: likewise, with the columns of the rings.
 *
 * Returns 0, or -1 for data with any irregularity. */
int planes_read(struct planes *planes, struct jpeg_decompress_struct *jpeg, struct entropy *entropy,
                const struct kernels *kernels, int first);

/* Whether all that output row o is made of has come. */
int planes_have(const struct planes *planes, int o);

/* Write output row o, RGB; OUTPUT_SLACK bytes more may be written. */
void planes_write(struct planes *planes, const struct kernels *kernels, const struct filter *across, int o,
                  uint8_t *out);

#endif
