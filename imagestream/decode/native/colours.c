/* See colours.h. */
#include "colours.h"

#include <stddef.h>

#include "resample.h"

#ifdef HAVE_X86
#include <immintrin.h>
#endif

/* What a unit of Cr adds to red, of Cb and Cr to green (less), of Cb to blue, in JFIF: times 8192. */
enum { CR_TO_R = 11485, CB_TO_G = 2819, CR_TO_G = 5850, CB_TO_B = 14516 };
/* A level is counted in sixteenths. Chroma, four times its distance from grey, is moved up by 5 bits, so that the upper
 * 16 of the 32 bits of its product with one of these are sixteenths too. */
enum { LEVEL_BITS = 4, CHROMA_BITS = 5, GREY = 4 * 128 };

static int chroma_of(const uint8_t *row, int i, int across) {
  int fourfold = across == 1 ? 4 * row[i] : 3 * row[i / 2] + row[i % 2 ? i / 2 + 1 : i / 2 - 1];
  return (fourfold - GREY) * (1 << CHROMA_BITS);
}

static uint8_t level_of(int sixteenths) {
  int level = (sixteenths + (1 << (LEVEL_BITS - 1))) >> LEVEL_BITS;
  return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

void colours_portable(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, int across, uint8_t *out) {
  for (int i = 0; i < width; i++, out += 4) {
    int luma = y[i] << LEVEL_BITS, blue = chroma_of(cb, i, across), red = chroma_of(cr, i, across);
    out[0] = level_of(luma + (red * CR_TO_R >> 16));
    out[1] = level_of(luma - (blue * CB_TO_G >> 16) - (red * CR_TO_G >> 16));
    out[2] = level_of(luma + (blue * CB_TO_B >> 16));
  }
}

#ifdef HAVE_X86

/* Chroma of 16 pixels, as chroma_of has it; `row` is at the first one's. */
INLINE_AVX2 __m256i chroma_16(const uint8_t *row, int across) {
  __m256i fourfold;
  if (across == 1) {
    fourfold = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)row)), 2);
  } else {
    __m128i before = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(row - 1)));
    __m128i near = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)row));
    __m128i after = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(row + 1)));
    near = _mm_add_epi16(near, _mm_add_epi16(near, near));
    __m128i even = _mm_add_epi16(near, before), odd = _mm_add_epi16(near, after);
    fourfold = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(even, odd)),
                                       _mm_unpackhi_epi16(even, odd), 1);
  }
  return _mm256_slli_epi16(_mm256_sub_epi16(fourfold, _mm256_set1_epi16(GREY)), CHROMA_BITS);
}

INLINE_AVX2 __m256i times(__m256i chroma, int factor) {
  return _mm256_mulhi_epi16(chroma, _mm256_set1_epi16((int16_t)factor));
}

INLINE_AVX2 void colours_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, int across,
                             uint8_t *out) {
  const __m256i halves_to_pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  for (int i = 0; i < width; i += 16, out += 64) {
    __m256i blue = chroma_16(cb + i / across, across), red = chroma_16(cr + i / across, across);
    __m256i luma = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(y + i))), LEVEL_BITS);
    luma = _mm256_add_epi16(luma, _mm256_set1_epi16(1 << (LEVEL_BITS - 1)));
    __m256i r = _mm256_add_epi16(luma, times(red, CR_TO_R)), b = _mm256_add_epi16(luma, times(blue, CB_TO_B));
    __m256i g = _mm256_sub_epi16(_mm256_sub_epi16(luma, times(blue, CB_TO_G)), times(red, CR_TO_G));
    __m256i rg = _mm256_packus_epi16(_mm256_srai_epi16(r, LEVEL_BITS), _mm256_srai_epi16(g, LEVEL_BITS));
    __m256i bx = _mm256_packus_epi16(_mm256_srai_epi16(b, LEVEL_BITS), _mm256_setzero_si256());
    rg = _mm256_shuffle_epi8(rg, halves_to_pairs), bx = _mm256_shuffle_epi8(bx, halves_to_pairs);
    __m256i outer = _mm256_unpacklo_epi16(rg, bx), inner = _mm256_unpackhi_epi16(rg, bx); /* 0-3 8-11, 4-7 12-15 */
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(outer, inner, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 32), _mm256_permute2x128_si256(outer, inner, 0x31));
  }
}

__attribute__((target("avx2"))) void colours_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width,
                                                  int across, uint8_t *out) {
  if (across == 1)
    colours_row(y, cb, cr, width, 1, out);
  else
    colours_row(y, cb, cr, width, 2, out);
}

#endif
