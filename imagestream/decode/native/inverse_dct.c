/* See inverse_dct.h.
 *
 * The method is that of C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical fast 1-D DCT algorithms with 11
 * multiplications" (ICASSP 1989), as libjpeg has it, in whose fixed point and roundings all is done: products of pairs,
 * each with its own two constants, are what one instruction adds up. */
#include "inverse_dct.h"

#include "resample.h"

#ifdef HAVE_X86
#include <immintrin.h>

enum { CONSTANT_BITS = 13, FIRST_PASS_BITS = 2 };
/* Constants of the method, times 8192. */
enum {
  F_0_298 = 2446, F_0_390 = 3196, F_0_541 = 4433, F_0_765 = 6270, F_0_899 = 7373, F_1_175 = 9633,
  F_1_501 = 12299, F_1_847 = 15137, F_1_961 = 16069, F_2_053 = 16819, F_2_562 = 20995, F_3_072 = 25172,
};

/* Four lanes of 128 bits hold two rows of the first block, then two of the second. Of constants, one pair goes with the
 * first of such two rows, one with the second. */
#define TWICE(a, b) (long long)(0x100000001u * ((uint64_t)(uint16_t)(a) | (uint64_t)(uint16_t)(b) << 16))
#define FOR_ROWS(a, b, c, d) \
  _mm512_setr_epi64(TWICE(a, b), TWICE(a, b), TWICE(c, d), TWICE(c, d), TWICE(a, b), TWICE(a, b), TWICE(c, d), \
                    TWICE(c, d))

INLINE_AVX512 __m512i swapped(__m512i rows) {
  return _mm512_permutex_epi64(rows, 0x4E);
}

INLINE_AVX512 __m512i settled(__m512i low, __m512i high, int bits) {
  const __m512i half = _mm512_set1_epi32(1 << (bits - 1));
  low = _mm512_srai_epi32(_mm512_add_epi32(low, half), (unsigned)bits);
  high = _mm512_srai_epi32(_mm512_add_epi32(high, half), (unsigned)bits);
  return _mm512_packs_epi32(low, high);
}

/* One dimension. Rows come as 0 4, 3 1, 2 6, 7 5, and go as 0 1, 3 2, 4 5, 7 6. */
INLINE_AVX512 void transform(__m512i rows[4], int bits) {
  __m512i in26 = rows[2], in62 = swapped(in26), in04 = rows[0], in40 = swapped(in04), in31 = rows[1], in75 = rows[3];
  const __m512i for_even = FOR_ROWS(F_0_541 + F_0_765, F_0_541, F_0_541 - F_1_847, F_0_541);
  __m512i t32_low = _mm512_madd_epi16(_mm512_unpacklo_epi16(in26, in62), for_even);
  __m512i t32_high = _mm512_madd_epi16(_mm512_unpackhi_epi16(in26, in62), for_even);
  __m512i sums = _mm512_mask_mov_epi16(_mm512_add_epi16(in40, in04), 0xFF00FF00u, _mm512_sub_epi16(in40, in04));
  const __m512i zero = _mm512_setzero_si512();
  __m512i t01_low = _mm512_srai_epi32(_mm512_unpacklo_epi16(zero, sums), 16 - CONSTANT_BITS);
  __m512i t01_high = _mm512_srai_epi32(_mm512_unpackhi_epi16(zero, sums), 16 - CONSTANT_BITS);
  __m512i even01_low = _mm512_add_epi32(t01_low, t32_low), even32_low = _mm512_sub_epi32(t01_low, t32_low);
  __m512i even01_high = _mm512_add_epi32(t01_high, t32_high), even32_high = _mm512_sub_epi32(t01_high, t32_high);

  __m512i z34 = _mm512_add_epi16(in75, in31), z43 = swapped(z34);
  const __m512i for_z = FOR_ROWS(F_1_175 - F_1_961, F_1_175, F_1_175 - F_0_390, F_1_175);
  __m512i z_low = _mm512_madd_epi16(_mm512_unpacklo_epi16(z34, z43), for_z);
  __m512i z_high = _mm512_madd_epi16(_mm512_unpackhi_epi16(z34, z43), for_z);
  __m512i in13 = swapped(in31);
  __m512i odd_low = _mm512_unpacklo_epi16(in75, in13), odd_high = _mm512_unpackhi_epi16(in75, in13);
  const __m512i for_01 = FOR_ROWS(F_0_298 - F_0_899, -F_0_899, F_2_053 - F_2_562, -F_2_562);
  const __m512i for_32 = FOR_ROWS(-F_0_899, F_1_501 - F_0_899, -F_2_562, F_3_072 - F_2_562);
  __m512i odd01_low = _mm512_add_epi32(_mm512_madd_epi16(odd_low, for_01), z_low);
  __m512i odd01_high = _mm512_add_epi32(_mm512_madd_epi16(odd_high, for_01), z_high);
  __m512i odd32_low = _mm512_add_epi32(_mm512_madd_epi16(odd_low, for_32), swapped(z_low));
  __m512i odd32_high = _mm512_add_epi32(_mm512_madd_epi16(odd_high, for_32), swapped(z_high));

  rows[0] = settled(_mm512_add_epi32(even01_low, odd32_low), _mm512_add_epi32(even01_high, odd32_high), bits);
  rows[3] = settled(_mm512_sub_epi32(even01_low, odd32_low), _mm512_sub_epi32(even01_high, odd32_high), bits);
  rows[1] = settled(_mm512_add_epi32(even32_low, odd01_low), _mm512_add_epi32(even32_high, odd01_high), bits);
  rows[2] = settled(_mm512_sub_epi32(even32_low, odd01_low), _mm512_sub_epi32(even32_high, odd01_high), bits);
}

/* Rows come as 0 1, 3 2, 4 5, 7 6, and columns go as rows 0 4, 1 5, 2 6, 3 7. */
INLINE_AVX512 void transpose(__m512i rows[4]) {
  __m512i a = _mm512_permutex_epi64(rows[0], 0xD8), b = _mm512_permutex_epi64(rows[1], 0x72);
  __m512i c = _mm512_permutex_epi64(rows[2], 0xD8), d = _mm512_permutex_epi64(rows[3], 0x72);
  __m512i e = _mm512_unpacklo_epi16(a, b), f = _mm512_unpackhi_epi16(a, b);
  __m512i g = _mm512_unpacklo_epi16(c, d), h = _mm512_unpackhi_epi16(c, d);
  a = _mm512_unpacklo_epi16(e, f), b = _mm512_unpacklo_epi16(g, h);
  c = _mm512_unpackhi_epi16(e, f), d = _mm512_unpackhi_epi16(g, h);
  rows[0] = _mm512_unpacklo_epi64(a, b), rows[1] = _mm512_unpackhi_epi64(a, b);
  rows[2] = _mm512_unpacklo_epi64(c, d), rows[3] = _mm512_unpackhi_epi64(c, d);
}

/* Two rows of each block, multiplied. */
INLINE_AVX512 __m512i two_rows(const struct block *first, const struct block *second, int row) {
  __m256i a = _mm256_mullo_epi16(_mm256_loadu_si256((const __m256i *)(first->coefficients + 8 * row)),
                                 _mm256_loadu_si256((const __m256i *)(first->factors + 8 * row)));
  __m256i b = _mm256_mullo_epi16(_mm256_loadu_si256((const __m256i *)(second->coefficients + 8 * row)),
                                 _mm256_loadu_si256((const __m256i *)(second->factors + 8 * row)));
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

INLINE_AVX512 void store(const struct block *block, __m256i rows_0145, __m256i rows_2367) {
  uint8_t *to = block->samples;
  size_t stride = block->stride;
  __m128i rows[4] = {_mm256_castsi256_si128(rows_0145), _mm256_castsi256_si128(rows_2367),
                     _mm256_extracti128_si256(rows_0145, 1), _mm256_extracti128_si256(rows_2367, 1)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++, to += 2 * stride) {
    _mm_storel_epi64((__m128i *)to, rows[i]);
    _mm_storeh_pd((double *)(void *)(to + stride), _mm_castsi128_pd(rows[i]));
  }
}

__attribute__((target(AVX512))) int inverse_dct_avx512(const struct block *first, const struct block *second) {
  /* The low halves of each block's two rows, and the high ones. */
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  __m512i in01 = two_rows(first, second, 0), in23 = two_rows(first, second, 2);
  const __m512i most = _mm512_set1_epi16(1 << 13), beyond = _mm512_set1_epi16((short)(3 << 14));
  if (_mm512_test_epi32_mask(_mm512_add_epi16(in01, most), beyond)) return -1; /* without AC codes libjpeg wraps around */
  __m512i in45 = two_rows(first, second, 4), in67 = two_rows(first, second, 6);
  __m512i rows[4] = {_mm512_permutex2var_epi64(in01, low, in45), _mm512_permutex2var_epi64(in23, high, in01),
                     _mm512_permutex2var_epi64(in23, low, in67), _mm512_permutex2var_epi64(in67, high, in45)};
  transform(rows, CONSTANT_BITS - FIRST_PASS_BITS);
  transpose(rows);
  __m512i in15 = rows[1], in37 = rows[3];
  rows[1] = _mm512_permutex2var_epi64(in37, low, in15), rows[3] = _mm512_permutex2var_epi64(in37, high, in15);
  transform(rows, CONSTANT_BITS + FIRST_PASS_BITS + 3);
  transpose(rows);
  const __m512i grey = _mm512_set1_epi8((char)128);
  __m512i rows_0145 = _mm512_add_epi8(_mm512_packs_epi16(rows[0], rows[1]), grey);
  __m512i rows_2367 = _mm512_add_epi8(_mm512_packs_epi16(rows[2], rows[3]), grey);
  store(first, _mm512_castsi512_si256(rows_0145), _mm512_castsi512_si256(rows_2367));
  store(second, _mm512_extracti64x4_epi64(rows_0145, 1), _mm512_extracti64x4_epi64(rows_2367, 1));
  return 0;
}

#endif
