/* Loops of pointwise.c by hand. */
#ifndef POINTWISE_AVX2_H
#define POINTWISE_AVX2_H

#include <stddef.h>
#include <stdint.h>

#include "resample.h"

#ifdef HAVE_X86
void blend_avx2(const uint8_t *from, const uint8_t *to, size_t bytes, float factor, uint8_t *out);
uint64_t sum_of_grey_avx2(const uint8_t *pixels, size_t count);
void saturate_avx2(uint8_t *pixels, size_t count, float factor);
void add_box_avx2(const uint8_t *const *rows, int taps, size_t bytes, uint32_t inner, uint32_t outer, uint8_t *out);
#endif

#endif
