/* Baseline Huffman data, decoded faster than by libjpeg, and faster still where only the next block's place counts. */
#ifndef HUFFMAN_H
#define HUFFMAN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

enum { PEEK_BITS = 10, PEEKS = 1 << PEEK_BITS };

/* One code, looked up by the next PEEK_BITS bits. */
struct huffman_table {
  JHUFF_TBL source;       /* what it was made of: most images share one set of tables */
  uint64_t two[PEEKS];    /* second value << 48 | coefficients to the last << 32 | value << 16 | run << 8 | bits of all */
  uint16_t symbol[PEEKS]; /* bits of the code << 8 | symbol; 0 where the code is not within the peek */
  uint16_t skip_one[PEEKS]; /* advance << 8 | bits of code and value; 0 where the code is not within the peek */
  uint16_t skip_two[PEEKS]; /* the same over two codes where both are within the peek */
  int32_t largest[18];    /* code of each length, or -1; the last is above every code */
  int32_t offset[17];     /* of a code of each length to its symbol's place */
  int is_made;
};

struct bit_reader {
  const uint8_t *next;
  uint64_t bits; /* the next ones, first on top */
  int count;     /* of them that are valid */
};

struct entropy {
  struct bit_reader reader;
  const uint8_t *data, *data_end; /* of the scan, from the next interval on */
  uint8_t *interval;              /* the bytes between two markers, without stuffed zeros */
  size_t interval_bytes, interval_capacity;
  struct huffman_table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
  const struct huffman_table *dc_of[D_MAX_BLOCKS_IN_MCU], *ac_of[D_MAX_BLOCKS_IN_MCU];
  int component[D_MAX_BLOCKS_IN_MCU], blocks;
  uint32_t previous[MAX_COMPS_IN_SCAN]; /* DC value */
  unsigned mcus_per_interval, mcus_to_go, intervals; /* between markers; left of this one; begun so far */
  int is_passed_over, reads_all;
  JDIMENSION column, columns, first_column, last_column; /* of MCUs; whose coefficients are wanted */
};

/* Prepare for the scan that libjpeg has just started; 0, or -1 where libjpeg had better decode it itself.
 *
 * Args: reads_all: read every code, where otherwise an interval between restart markers that holds nothing of what is
 * wanted is passed over. */
int entropy_start(struct entropy *entropy, const struct jpeg_decompress_struct *jpeg, JDIMENSION first_column,
                  JDIMENSION last_column, int reads_all);

void entropy_free(struct entropy *entropy);

/* Decode the next MCU into zeroed blocks, or past it when `blocks` is NULL or its column is not wanted.
 *
 * Returns 0, or -1 for data with any irregularity; what libjpeg makes of those is libjpeg's business. */
int entropy_decode(struct entropy *entropy, JBLOCKROW *blocks);

/* Whether all bits but the last byte's padding are used, and the marker of the image's end comes next. */
int entropy_is_at_end(const struct entropy *entropy);

#endif
