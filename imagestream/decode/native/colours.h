/* Chroma interpolated across a row, as libjpeg does it, and colours worked out; every path yields the same bytes. */
#ifndef COLOURS_H
#define COLOURS_H

#include <stdint.h>

/* As struct kernels says of `colours`. */
void colours_portable(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, int across, uint8_t *out);
void colours_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, int across, uint8_t *out);

#endif
