/* Huffman decoding of baseline JPEG (ITU-T T.81, annex F.2); see huffman.h.
 *
 * Five things make it fast: stuffed zeros are taken out beforehand; 64 bits are held, and filled without a branch; one
 * look at the next ten bits yields up to two runs, values and their length at once; outside the crop values are not
 * formed at all; and where an image has restart markers, codes outside the crop are not even read.
 */
#include "huffman.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum {
  END_OF_BLOCK = 0x80,
  LONGEST = 16,        /* bits of a code */
  NOT_TWO = 0x80,      /* beside the bits of a code for the block's end, or none for one that is not within the peek */
  LOOKS_TO_DECODE = 5, /* in a row, after one fill, of PEEK_BITS at most */
  LOOKS_TO_SKIP = 5,   /* of MOST_TO_SKIP bits at most */
  MOST_TO_SKIP = 11,   /* bits; a longer value goes by itself */
  OVERRUN = 4096,      /* bytes that may be read past the end; an MCU has at most 10 * 64 codes of 31 bits */
};

/* Place of the k-th coefficient (T.81, figure 5); the last 16 catch runs that damaged data lets run over. */
static const uint8_t natural_order[64 + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

/* ---- tables --------------------------------------------------------------------------------------------------- */

/* A value's sign is its first bit: 0 stands for the negative half (T.81, F.2.2.1, EXTEND). */
static int extend(int value, int bits) {
  return value < 1 << (bits - 1) ? value - (1 << bits) + 1 : value;
}

/* Note a code where it can be looked up. Args: one: by peek, value << 16 | run << 8 | bits of code and value, left as it
 * is where those are not within the peek; NULL for DC codes, of which only the size is looked up. */
static void note_code(struct huffman_table *table, uint32_t *one, int code, int length, int symbol) {
  int size = symbol & 15, run = symbol >> 4, all = length + size, spare = PEEK_BITS - length;
  int is_end = !size && run != 15;
  for (int rest = 0; rest < 1 << spare; rest++) {
    int peek = (code << spare) + rest;
    table->symbol[peek] = (uint16_t)(length << 8 | symbol);
    if (!one) continue;
    table->skip_one[peek] = (uint16_t)((is_end ? END_OF_BLOCK : run + 1) << 8 | all);
    if (all > PEEK_BITS) continue;
    int value = size ? extend((rest >> (spare - size)) & ((1 << size) - 1), size) : 0;
    one[peek] = (uint32_t)(uint16_t)value << 16 | (uint32_t)((is_end ? END_OF_BLOCK : run) << 8 | all);
  }
}

/* Join each code to the next where both are within the peek. */
static void pair_codes(struct huffman_table *table, const uint32_t *one) {
  for (int peek = 0; peek < PEEKS; peek++) {
    int skip = table->skip_one[peek], bits = skip & 0xFF;
    table->skip_two[peek] = bits <= MOST_TO_SKIP ? (uint16_t)skip : 0;
    uint64_t first = one[peek];
    int is_one = first && !(first >> 8 & END_OF_BLOCK);
    table->two[peek] = is_one ? first | ((first >> 8 & 0xFF) + 1) << 32 : (first & 0xFF) | NOT_TWO;
    if (!skip || skip >> 8 & END_OF_BLOCK || bits >= PEEK_BITS) continue;
    int next = peek << bits & (PEEKS - 1);
    if (table->symbol[next] && bits + (table->symbol[next] >> 8) <= PEEK_BITS &&
        bits + (table->skip_one[next] & 0xFF) <= MOST_TO_SKIP)
      table->skip_two[peek] = (uint16_t)(skip + table->skip_one[next]);
    uint64_t second = one[next];
    if (!second || bits + (int)(second & 0xFF) > PEEK_BITS) continue;
    table->two[peek] += second & 0xFF;
    if (second >> 8 & END_OF_BLOCK)
      table->two[peek] |= (uint64_t)END_OF_BLOCK << 32;
    else
      table->two[peek] += second >> 16 << 48 | ((second >> 8 & 0xFF) + 1) << 32;
  }
}

/* Lay out a table; -1 where its codes do not fit their lengths (libjpeg has refused such tables before). */
static int make_table(struct huffman_table *table, const JHUFF_TBL *source, int for_ac) {
  if (!source) return -1;
  if (table->is_made && !memcmp(table->source.bits, source->bits, sizeof source->bits) &&
      !memcmp(table->source.huffval, source->huffval, sizeof source->huffval))
    return 0;
  memset(table, 0, sizeof *table);
  uint32_t one[PEEKS] = {0};
  int code = 0, place = 0;
  for (int length = 1; length <= LONGEST; length++, code <<= 1) {
    int codes = source->bits[length];
    table->offset[length] = place - code;
    if (code + codes > 1 << length || place + codes > 256) return -1;
    for (int i = 0; i < codes; i++, code++, place++)
      if (length <= PEEK_BITS) note_code(table, for_ac ? one : NULL, code, length, source->huffval[place]);
    table->largest[length] = codes ? code - 1 : -1;
  }
  if (for_ac) pair_codes(table, one);
  table->source = *source;
  table->is_made = 1;
  return 0;
}

/* ---- bits ----------------------------------------------------------------------------------------------------- */

/* Copy the data up to the next marker, without the zeros stuffed in after FF; -1 where there is no marker. */
static int load_interval(struct entropy *entropy) {
  const uint8_t *from = entropy->data, *end = entropy->data_end;
  uint8_t *to = entropy->interval;
  for (;;) {
    for (uint64_t word; end - from >= 8; from += 8, to += 8) {
      memcpy(&word, from, sizeof word);
      memcpy(to, &word, sizeof word);
      if ((~word - 0x0101010101010101u) & word & 0x8080808080808080u) break; /* a byte is FF: of ~word it is zero */
    }
    while (from < end && *from != 0xFF) *to++ = *from++;
    if (end - from < 2) return -1;
    if (from[1]) break;
    *to++ = 0xFF;
    from += 2;
  }
  entropy->data = from;
  entropy->interval_bytes = (size_t)(to - entropy->interval);
  entropy->reader = (struct bit_reader){.next = entropy->interval};
  memset(entropy->previous, 0, sizeof entropy->previous);
  return 0;
}

/* Go to the next marker; -1 where there is none. */
static int pass_interval(struct entropy *entropy) {
  const uint8_t *at = entropy->data, *last = entropy->data_end - 1;
  while (at < last && (at = memchr(at, 0xFF, (size_t)(last - at))) && !at[1]) at += 2;
  if (!at || at >= last) return -1;
  entropy->data = at;
  return 0;
}

/* Bits of the interval that are not yet used; below zero when more were taken than there are. */
static ptrdiff_t bits_left(const struct entropy *entropy, const struct bit_reader *reader) {
  return 8 * ((ptrdiff_t)entropy->interval_bytes - (reader->next - entropy->interval)) + reader->count;
}

/* Have at least 56 bits: a code of 16 and a value of 15 come twice from them. */
static inline __attribute__((always_inline)) void fill(struct bit_reader *reader) {
  uint64_t word;
  memcpy(&word, reader->next, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  reader->bits |= word >> reader->count; /* what goes below `count` is read again, and is the same, the next time */
  reader->next += (63 - reader->count) >> 3;
  reader->count |= 56;
}

static inline __attribute__((always_inline)) void drop(struct bit_reader *reader, int bits) {
  reader->bits <<= bits;
  reader->count -= bits;
}

/* A value of 0-15 bits, without a branch on its sign, which nobody can foresee. */
static inline __attribute__((always_inline)) int take_value(struct bit_reader *reader, int bits) {
  int is_positive = (int)(reader->bits >> 63), value = (int)(reader->bits >> 1 >> (63 - bits));
  drop(reader, bits);
  return value + ((is_positive - 1) & (1 - (1 << bits)));
}

static inline __attribute__((always_inline)) unsigned peek(const struct bit_reader *reader) {
  return (unsigned)(reader->bits >> (64 - PEEK_BITS));
}

/* The next symbol, or -1 for bits that are no code. */
static inline __attribute__((always_inline)) int take_symbol(struct bit_reader *reader,
                                                             const struct huffman_table *table) {
  int found = table->symbol[peek(reader)];
  if (found) {
    drop(reader, found >> 8);
    return found & 0xFF;
  }
  for (int length = PEEK_BITS + 1; length <= LONGEST; length++) {
    int code = (int)(reader->bits >> (64 - length));
    if (code > table->largest[length]) continue;
    drop(reader, length);
    return table->source.huffval[(code + table->offset[length]) & 0xFF];
  }
  return -1;
}

/* ---- blocks --------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) int decode_dc(struct bit_reader *reader, const struct huffman_table *table,
                                                           uint32_t *previous) {
  fill(reader);
  int size = take_symbol(reader, table);
  if (size < 0 || size > 15) return -1;
  *previous += (uint32_t)take_value(reader, size);
  return 0;
}

/* A code and its value, however long. Returns the run, END_OF_BLOCK or -1. */
static inline __attribute__((always_inline)) int take_long(struct bit_reader *reader, const struct huffman_table *table,
                                                           int *value) {
  int symbol = take_symbol(reader, table), size = symbol & 15;
  if (symbol < 0) return -1;
  if (!size && symbol != 0xF0) return END_OF_BLOCK;
  *value = take_value(reader, size);
  return symbol >> 4;
}

static inline __attribute__((always_inline)) int decode_ac(struct bit_reader *reader, const struct huffman_table *table,
                                                           JCOEF *block) {
  for (size_t k = 1; k < DCTSIZE2;) {
    int looks = 0, value;
    fill(reader);
#pragma GCC unroll 5
    for (; looks < LOOKS_TO_DECODE; looks++) {
      uint64_t found = table->two[peek(reader)];
      if (__builtin_expect(found & NOT_TWO, 0)) {
        drop(reader, (int)(found & ~NOT_TWO));
        if (found != NOT_TWO) return 0;
        break;
      }
      size_t first = k + (found >> 8 & 0xFF), end = k + (found >> 32 & 0x7F);
      if (end >= DCTSIZE2) break; /* the first of two codes may be the block's last */
      drop(reader, (int)(found & 0xFF));
      k = end;
      block[natural_order[end - 1]] = (JCOEF)(int16_t)(found >> 48); /* of the second; the first, where it is alone, */
      block[natural_order[first]] = (JCOEF)(int16_t)(found >> 16);   /* then takes its place */
      if (found & (uint64_t)END_OF_BLOCK << 32) return 0;
    }
    if (looks == LOOKS_TO_DECODE) continue;
    fill(reader);
    int run = take_long(reader, table, &value);
    if (run & END_OF_BLOCK) return run < 0 ? -1 : 0;
    k += (size_t)run;
    block[natural_order[k++]] = (JCOEF)value; /* a run of 16 zeros ends in a zero, written again */
    if (k > DCTSIZE2) return -1;
  }
  return 0;
}

static inline __attribute__((always_inline)) int skip_ac(struct bit_reader *reader, const struct huffman_table *table) {
  int k = 1, ignored;
  do {
    int found, next = 0;
    do {
      fill(reader);
#pragma GCC unroll 5
      for (int i = 0; i < LOOKS_TO_SKIP; i++) {
        found = table->skip_two[peek(reader)];
        next = k + (found >> 8 & ~END_OF_BLOCK);
        if (!found || next > 63) break; /* of two codes the first may be the block's last */
        drop(reader, found & 0xFF);
        if (found & END_OF_BLOCK << 8) return 0;
        k = next;
      }
    } while (found && next <= 63);
    fill(reader);
    found = table->skip_one[peek(reader)];
    drop(reader, found & 0xFF);
    if (found & END_OF_BLOCK << 8) return 0;
    k += found >> 8;
    if (found) continue;
    int run = take_long(reader, table, &ignored);
    if (run & END_OF_BLOCK) return run < 0 ? -1 : 0;
    k += run + 1;
  } while (k < 64);
  return k == 64 ? 0 : -1;
}

/* ---- scans ---------------------------------------------------------------------------------------------------- */

int entropy_start(struct entropy *entropy, const struct jpeg_decompress_struct *jpeg, JDIMENSION first_column,
                  JDIMENSION last_column, int reads_all) {
  if (jpeg->progressive_mode || jpeg->arith_code || jpeg->comps_in_scan != jpeg->num_components ||
      jpeg->data_precision != 8 || jpeg->Ss != 0 || jpeg->Se != DCTSIZE2 - 1 || jpeg->Ah || jpeg->Al)
    return -1;
  for (int c = 0; c < jpeg->comps_in_scan; c++) {
    int dc = jpeg->cur_comp_info[c]->dc_tbl_no, ac = jpeg->cur_comp_info[c]->ac_tbl_no;
    if (dc < 0 || dc >= NUM_HUFF_TBLS || ac < 0 || ac >= NUM_HUFF_TBLS) return -1;
    if (make_table(&entropy->dc[dc], jpeg->dc_huff_tbl_ptrs[dc], 0)) return -1;
    if (make_table(&entropy->ac[ac], jpeg->ac_huff_tbl_ptrs[ac], 1)) return -1;
  }
  entropy->blocks = jpeg->blocks_in_MCU;
  for (int i = 0; i < entropy->blocks; i++) {
    int component = entropy->component[i] = jpeg->MCU_membership[i];
    entropy->dc_of[i] = &entropy->dc[jpeg->cur_comp_info[component]->dc_tbl_no];
    entropy->ac_of[i] = &entropy->ac[jpeg->cur_comp_info[component]->ac_tbl_no];
  }
  entropy->mcus_per_interval = jpeg->restart_interval ? jpeg->restart_interval : UINT_MAX;
  entropy->mcus_to_go = entropy->intervals = 0;
  entropy->is_passed_over = 0, entropy->reads_all = reads_all;
  entropy->column = 0, entropy->columns = jpeg->MCUs_per_row;
  entropy->first_column = first_column, entropy->last_column = last_column;
  size_t bytes = jpeg->src->bytes_in_buffer;
  if (bytes + OVERRUN > entropy->interval_capacity) {
    free(entropy->interval);
    entropy->interval = calloc(1, bytes + OVERRUN);
    entropy->interval_capacity = entropy->interval ? bytes + OVERRUN : 0;
    if (!entropy->interval) return -1;
  }
  entropy->data = jpeg->src->next_input_byte, entropy->data_end = entropy->data + bytes;
  return 0;
}

void entropy_free(struct entropy *entropy) {
  free(entropy->interval);
}

/* Whether the interval that begins at the current column may hold an MCU that is wanted; `blocks` is NULL in rows that
 * are not. Of the row after this one only the columns are known. */
static int may_be_wanted(const struct entropy *entropy, const JBLOCKROW *blocks) {
  JDIMENSION columns = entropy->columns;
  if (entropy->reads_all || entropy->mcus_per_interval > columns) return 1;
  JDIMENSION end = entropy->column + entropy->mcus_per_interval;
  if (blocks && entropy->column <= entropy->last_column && (end < columns ? end : columns) > entropy->first_column)
    return 1;
  return end > columns + entropy->first_column;
}

/* Go on behind the marker that ends an interval; -1 unless it is the right one, right here. */
static int next_interval(struct entropy *entropy, const JBLOCKROW *blocks) {
  if (entropy->intervals) {
    if (!entropy->is_passed_over && bits_left(entropy, &entropy->reader) >= 8) return -1;
    if (entropy->data[1] != 0xD0 + (entropy->intervals - 1) % 8) return -1;
    entropy->data += 2;
  }
  entropy->intervals++;
  entropy->mcus_to_go = entropy->mcus_per_interval;
  entropy->is_passed_over = !may_be_wanted(entropy, blocks);
  return entropy->is_passed_over ? pass_interval(entropy) : load_interval(entropy);
}

int entropy_decode(struct entropy *entropy, JBLOCKROW *blocks) {
  if (entropy->mcus_to_go == 0 && next_interval(entropy, blocks)) return -1;
  entropy->mcus_to_go--;
  int wanted = blocks && entropy->column >= entropy->first_column && entropy->column <= entropy->last_column;
  if (++entropy->column == entropy->columns) entropy->column = 0;
  if (entropy->is_passed_over) return 0;
  struct bit_reader reader = entropy->reader; /* a copy that can live in registers */
  for (int i = 0; i < entropy->blocks; i++) {
    uint32_t *previous = &entropy->previous[entropy->component[i]];
    if (decode_dc(&reader, entropy->dc_of[i], previous)) return -1;
    if (wanted) {
      JCOEF *block = *blocks[i];
      block[0] = (JCOEF)(int16_t)(uint16_t)*previous;
      if (decode_ac(&reader, entropy->ac_of[i], block)) return -1;
    } else if (skip_ac(&reader, entropy->ac_of[i])) {
      return -1;
    }
  }
  entropy->reader = reader;
  return bits_left(entropy, &reader) < 0 ? -1 : 0;
}

int entropy_is_at_end(const struct entropy *entropy) {
  ptrdiff_t left = bits_left(entropy, &entropy->reader);
  return left >= 0 && left < 8 && entropy->data[1] == JPEG_EOI;
}
