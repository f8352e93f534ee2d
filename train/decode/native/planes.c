/* See planes.h.
 *
 * libjpeg interpolates chroma and works out colours, and the resize follows. But for rounding, and for colours outside
 * RGB, which are clipped, all three are sums with weights, whose order is free. Here a row is brought down to the
 * result's height first, and only what is left is interpolated across and coloured. */
#include "planes.h"

#include <string.h>

#if JPEG_LIB_VERSION >= 70
#define BLOCK_WIDTH(component) (component)->DCT_h_scaled_size
#define BLOCK_HEIGHT(component) (component)->DCT_v_scaled_size
#else
#define BLOCK_WIDTH(component) (component)->DCT_scaled_size
#define BLOCK_HEIGHT(component) (component)->DCT_scaled_size
#endif

int planes_fit(struct planes *planes, const struct jpeg_decompress_struct *jpeg) {
  if (jpeg->jpeg_color_space != JCS_YCbCr || jpeg->num_components != 3) return 0;
  int width[3], height[3]; /* of an MCU, in samples */
  for (int c = 0; c < 3; c++) {
    const jpeg_component_info *component = jpeg->comp_info + c;
    width[c] = component->h_samp_factor * BLOCK_WIDTH(component);
    height[c] = component->v_samp_factor * BLOCK_HEIGHT(component);
    int across = width[0] / width[c], down = height[0] / height[c];
    if (across < 1 || across > 2 || width[c] * across != width[0]) return 0;
    if (down < 1 || down > 2 || height[c] * down != height[0]) return 0;
    planes->across = across, planes->down = down;
  }
  return width[1] == width[2] && height[1] == height[2] && height[0] <= MOST_ROWS_OF_MCU;
}

int planes_plan(struct planes *planes, const struct filter *luma, int origin, int height) {
  planes->luma = luma, planes->origin = origin;
  if (filter_plan_chroma(&planes->chroma, luma, origin, height, planes->down)) return -1;
  int groups = luma->groups > planes->chroma.groups ? luma->groups : planes->chroma.groups;
  /* An MCU row comes at once, and luma may have to wait for chroma's next one. */
  return planes->ring_rows = 4 * groups + 2 * MOST_ROWS_OF_MCU;
}

int planes_take(struct planes *planes, const struct jpeg_decompress_struct *jpeg, JSAMPIMAGE rows, int groups) {
  int taken = groups * jpeg->max_v_samp_factor, first = (int)jpeg->output_scanline;
  for (int c = 0; c < 3; c++) {
    int down = c ? planes->down : 1, place = first / down % planes->ring_rows;
    for (int r = 0; r < taken / down; r++, place = place + 1 < planes->ring_rows ? place + 1 : 0)
      memcpy(planes->rings[c] + planes->stride * (size_t)place, rows[c][r], (size_t)planes->width[c]);
  }
  planes->rows = first + taken, planes->chroma_rows = planes->rows / planes->down;
  return taken;
}

int planes_have(const struct planes *planes, int o) {
  const struct filter *luma = planes->luma, *chroma = &planes->chroma;
  return planes->origin + luma->first[o] + luma->count[o] <= planes->rows &&
         chroma->first[o] + chroma->count[o] <= planes->chroma_rows;
}

static void narrow(struct planes *planes, const struct kernels *kernels, int c, const struct filter *filter, int first,
                   int o) {
  int place = first % planes->ring_rows;
  for (int t = 0; t < 4 * filter->groups; t++) { /* past the count too: kernels take them in pairs */
    planes->taps[t] = planes->rings[c] + planes->stride * (size_t)place;
    if (t + 1 < filter->count[o]) place = place + 1 < planes->ring_rows ? place + 1 : 0;
  }
  kernels->vertical(planes->taps, filter, o, (size_t)planes->width[c], planes->narrowed[c]);
}

void planes_write(struct planes *planes, const struct kernels *kernels, const struct filter *across, int o,
                  uint8_t *out) {
  narrow(planes, kernels, 0, planes->luma, planes->origin + planes->luma->first[o], o);
  for (int c = 1; c < 3; c++) {
    uint8_t *row = planes->narrowed[c];
    narrow(planes, kernels, c, &planes->chroma, planes->chroma.first[o], o);
    row[-1] = row[0], row[planes->width[c]] = row[planes->width[c] - 1]; /* there is nothing beyond the edges */
  }
  kernels->colours(planes->narrowed[0], planes->narrowed[1], planes->narrowed[2], planes->width[0], planes->across,
                   planes->colours);
  kernels->horizontal(planes->colours, across, out);
}
