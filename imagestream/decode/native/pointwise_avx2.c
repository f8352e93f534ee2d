/* The loops of pointwise.c that AVX2's instructions, chosen by hand, do in half the compiler's time.
 *
 * All of them end in Image.blend: from + factor * (to - from) in single precision, cut off; packing with saturation
 * clips. */
#include "pointwise_avx2.h"

#ifdef HAVE_X86

#include <immintrin.h>
#include <string.h>

/* Eight levels, as whole numbers, that may lie outside 0-255. */
INLINE_AVX2 __m256i blended(__m256i from, __m256i to, __m256 factor) {
  __m256 change = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_sub_epi32(to, from)));
  return _mm256_cvttps_epi32(_mm256_add_ps(_mm256_cvtepi32_ps(from), change));
}

INLINE_AVX2 __m256i eight(const uint8_t *bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

/* Write 32 bytes of four times eight levels. */
INLINE_AVX2 void store_clipped(uint8_t *out, __m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing works within 128-bit lanes */
  __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  _mm256_storeu_si256((__m256i *)out, _mm256_permutevar8x32_epi32(bytes, order));
}

INLINE_AVX2 void blend_32(const uint8_t *from, const uint8_t *to, __m256 factor, uint8_t *out) {
  store_clipped(out, blended(eight(from), eight(to), factor), blended(eight(from + 8), eight(to + 8), factor),
                blended(eight(from + 16), eight(to + 16), factor), blended(eight(from + 24), eight(to + 24), factor));
}

__attribute__((target("avx2"))) void blend_avx2(const uint8_t *from, const uint8_t *to, size_t bytes, float factor,
                                                uint8_t *out) {
  __m256 factors = _mm256_set1_ps(factor);
  size_t at = 0;
  for (; at + 32 <= bytes; at += 32) blend_32(from + at, to + at, factors, out + at);
  if (at < bytes) {
    uint8_t ends[3][32] = {{0}};
    memcpy(ends[0], from + at, bytes - at), memcpy(ends[1], to + at, bytes - at);
    blend_32(ends[0], ends[1], factors, ends[2]);
    memcpy(out + at, ends[2], bytes - at);
  }
}

/* The greys of eight pixels, of which `pixels` has 28 bytes: in two lanes four pixels each. */
INLINE_AVX2 __m256i greys(__m256i pixels) {
  /* Green's weight is too large for 16 bits and split: red and green, then green and blue. */
  const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 1, -1, 2, -1, 3, -1, 4, -1, 4, -1, 5, -1, /* two pixels */
                                         0, -1, 1, -1, 1, -1, 2, -1, 3, -1, 4, -1, 4, -1, 5, -1);
  const __m256i second = _mm256_setr_epi8(6, -1, 7, -1, 7, -1, 8, -1, 9, -1, 10, -1, 10, -1, 11, -1, /* two more */
                                          6, -1, 7, -1, 7, -1, 8, -1, 9, -1, 10, -1, 10, -1, 11, -1);
  const __m256i weights = _mm256_setr_epi16(19595, 19235, 19235, 7471, 19595, 19235, 19235, 7471, /* of 38470: halves */
                                            19595, 19235, 19235, 7471, 19595, 19235, 19235, 7471);
  __m256i a = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first), weights);
  __m256i b = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, second), weights);
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_hadd_epi32(a, b), _mm256_set1_epi32(0x8000)), 16);
}

/* Eight pixels, four in each lane; 28 bytes are read. */
INLINE_AVX2 __m256i eight_pixels(const uint8_t *pixels) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)pixels)),
                                 _mm_loadu_si128((const __m128i *)(pixels + 12)), 1);
}

enum { PIXELS = 8, BYTES = 3 * PIXELS, READ = 28 };

__attribute__((target("avx2"))) uint64_t sum_of_grey_avx2(const uint8_t *pixels, size_t count) {
  uint64_t sum = 0;
  uint32_t parts[8];
  for (size_t at = 0; at < count;) {
    __m256i part = _mm256_setzero_si256();
    for (int i = 0; i < 4096 && at < count; i++, at += PIXELS) { /* then it might not fit 32 bits */
      uint8_t end[READ] = {0};
      const uint8_t *from = pixels + 3 * at;
      if (count - at < PIXELS + 2) memcpy(end, from, count - at < PIXELS ? 3 * (count - at) : BYTES), from = end;
      part = _mm256_add_epi32(part, greys(eight_pixels(from)));
    }
    memcpy(parts, &part, sizeof parts);
    for (int i = 0; i < 8; i++) sum += parts[i];
  }
  return sum;
}

/* Of four pixels' greys in each lane, those of the twelve bytes, eight at a time: bytes 0-7 of the first lane's and so
 * on. */
INLINE_AVX2 void saturate_8(const uint8_t *from, __m256 factor, uint8_t *out) {
  const __m256i first = _mm256_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2), second = _mm256_setr_epi32(2, 3, 3, 3, 4, 4, 4, 5);
  const __m256i third = _mm256_setr_epi32(5, 5, 6, 6, 6, 7, 7, 7);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i grey = greys(eight_pixels(from));
  __m256i a = blended(_mm256_permutevar8x32_epi32(grey, first), eight(from), factor);
  __m256i b = blended(_mm256_permutevar8x32_epi32(grey, second), eight(from + 8), factor);
  __m256i c = blended(_mm256_permutevar8x32_epi32(grey, third), eight(from + 16), factor);
  __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, c));
  bytes = _mm256_permutevar8x32_epi32(bytes, order);
  _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(bytes));
  _mm_storel_epi64((__m128i *)(out + 16), _mm256_extracti128_si256(bytes, 1));
}

__attribute__((target("avx2"))) void saturate_avx2(uint8_t *pixels, size_t count, float factor) {
  __m256 factors = _mm256_set1_ps(factor);
  size_t at = 0;
  for (; at + PIXELS + 2 <= count; at += PIXELS) saturate_8(pixels + 3 * at, factors, pixels + 3 * at);
  for (; at < count; at += PIXELS) {
    uint8_t end[READ] = {0}, out[BYTES];
    size_t bytes = count - at < PIXELS ? 3 * (count - at) : BYTES;
    memcpy(end, pixels + 3 * at, bytes);
    saturate_8(end, factors, out);
    memcpy(pixels + 3 * at, out, bytes);
  }
}

INLINE_AVX2 __m256i sixteen(const uint8_t *bytes) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)bytes));
}

/* A sum times its weight and another times its own: weights of 24 bits as two halves, each of which one instruction
 * multiplies and adds. */
INLINE_AVX2 __m256i weighted(__m256i pairs, __m256i high, __m256i low) {
  __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(pairs, high), 12), _mm256_madd_epi16(pairs, low));
  return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << 23)), 24);
}

INLINE_AVX2 void add_box_16(const uint8_t *const *rows, int taps, size_t at, __m256i high, __m256i low, uint8_t *out) {
  __m256i sum = _mm256_setzero_si256(), ends = _mm256_add_epi16(sixteen(rows[0] + at), sixteen(rows[taps - 1] + at));
  for (int tap = 1; tap < taps - 1; tap++) sum = _mm256_add_epi16(sum, sixteen(rows[tap] + at));
  __m256i a = weighted(_mm256_unpacklo_epi16(sum, ends), high, low);
  __m256i b = weighted(_mm256_unpackhi_epi16(sum, ends), high, low);
  __m256i words = _mm256_packus_epi32(a, b); /* unpacking and packing both work within lanes */
  __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128((__m128i *)out, bytes);
}

__attribute__((target("avx2"))) void add_box_avx2(const uint8_t *const *rows, int taps, size_t bytes, uint32_t inner,
                                                  uint32_t outer, uint8_t *out) {
  __m256i high = _mm256_set1_epi32((int)(inner >> 12 | outer >> 12 << 16));
  __m256i low = _mm256_set1_epi32((int)((inner & 4095) | (outer & 4095) << 16));
  size_t at = 0;
  if (taps == 5) /* the most usual ones by themselves, so that their loops are unrolled */
    for (; at + 16 <= bytes; at += 16) add_box_16(rows, 5, at, high, low, out + at);
  else if (taps == 3)
    for (; at + 16 <= bytes; at += 16) add_box_16(rows, 3, at, high, low, out + at);
  else
    for (; at + 16 <= bytes; at += 16) add_box_16(rows, taps, at, high, low, out + at);
  for (; at < bytes; at++) {
    uint32_t sum = 0, ends = (uint32_t)rows[0][at] + rows[taps - 1][at];
    for (int tap = 1; tap < taps - 1; tap++) sum += rows[tap][at];
    out[at] = (uint8_t)((sum * inner + ends * outer + (1u << 23)) >> 24);
  }
}

#endif
