/* Has the kernels of imagestream/decode/native run their AVX2 and AVX-512 code on any processor: intrinsics become
 * SIMDe's plain C.
 *
 * Given to the compiler by -include. SIMDe 0.7 (Debian 12) lacks six of those that are used, written out below from
 * Intel's Intrinsics Guide. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <string.h>

#define HAVE_X86 1 /* on other processors too */
#define _IMMINTRIN_H_INCLUDED 1                 /* gcc's own header would declare the same names */
#define target(instructions) unused             /* or the compiler would put the instructions in by itself */
#define __builtin_cpu_init() (void)0
#define __builtin_cpu_supports(instructions) 1

/* SIMDe's are macros of so many arguments, which PAIR_OF_TAPS is not before it is expanded. */
#undef _mm_setr_epi8
#define _mm_setr_epi8(...) simde_mm_setr_epi8(__VA_ARGS__)
#undef _mm256_setr_epi8
#define _mm256_setr_epi8(...) simde_mm256_setr_epi8(__VA_ARGS__)

#undef _mm512_madd_epi16 /* of 0.7.4 stands for the masked one */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#undef __mmask64
#define __mmask64 uint64_t

static inline __m512i emulated_shuffle_epi32(__m512i from, int places) {
  int32_t in[16], out[16];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = in[i / 4 * 4 + (places >> 2 * (i % 4) & 3)];
  memcpy(&from, out, sizeof out);
  return from;
}

static inline __m128i emulated_cvtepi32_epi8(__m512i from) {
  int32_t in[16];
  uint8_t out[16];
  __m128i result;
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = (uint8_t)in[i];
  memcpy(&result, out, sizeof out);
  return result;
}

static inline __m512i emulated_maskz_loadu_epi8(uint64_t mask, const void *from) {
  uint8_t out[64] = {0};
  __m512i result;
  for (int i = 0; i < 64; i++)
    if (mask >> i & 1) out[i] = ((const uint8_t *)from)[i];
  memcpy(&result, out, sizeof out);
  return result;
}

static inline void emulated_mask_storeu_epi8(void *to, uint64_t mask, __m512i from) {
  uint8_t in[64];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 64; i++)
    if (mask >> i & 1) ((uint8_t *)to)[i] = in[i];
}

static inline __m512i emulated_srai_epi32(__m512i from, unsigned bits) {
  int32_t in[16];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) in[i] >>= bits;
  memcpy(&from, in, sizeof in);
  return from;
}

#undef _mm512_permutex_epi64
#define _mm512_permutex_epi64(from, places) \
  _mm512_permutexvar_epi64(_mm512_setr_epi64((places) & 3, (places) >> 2 & 3, (places) >> 4 & 3, (places) >> 6, \
                                             4 + ((places) & 3), 4 + ((places) >> 2 & 3), 4 + ((places) >> 4 & 3), \
                                             4 + ((places) >> 6)), from)
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32 emulated_shuffle_epi32
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8 emulated_mask_storeu_epi8
