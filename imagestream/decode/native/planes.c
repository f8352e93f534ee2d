/* See planes.h.
 *
 * libjpeg interpolates chroma and works out colours, and a resize follows. But for rounding, and for colours outside
 * RGB, which are clipped, all three are sums with weights, whose order is free. Here a row is brought down to the
 * result's height first, and only what is left is interpolated across and coloured. */
#include "planes.h"

#include <string.h>

#include "inverse_dct.h"

#if JPEG_LIB_VERSION >= 70
#define BLOCK_WIDTH(component) (component)->DCT_h_scaled_size
#define BLOCK_HEIGHT(component) (component)->DCT_v_scaled_size
#else
#define BLOCK_WIDTH(component) (component)->DCT_scaled_size
#define BLOCK_HEIGHT(component) (component)->DCT_scaled_size
#endif

/* libjpeg's inverse DCT, as it is chosen for each component. This start of the structure too has been the same from
 * libjpeg 6b to libjpeg-turbo 3 (see decode.c), and is not declared everywhere. */
struct jpeg_inverse_dct {
  void (*start_pass)(j_decompress_ptr jpeg);
  void (*inverse_DCT[MAX_COMPONENTS])(j_decompress_ptr jpeg, jpeg_component_info *component, JCOEFPTR block,
                                      JSAMPARRAY rows, JDIMENSION column);
};

int planes_fit(struct planes *planes, struct jpeg_decompress_struct *jpeg) {
  if (jpeg->jpeg_color_space != JCS_YCbCr || jpeg->num_components != 3 || jpeg_has_multiple_scans(jpeg)) return 0;
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
  return width[1] == width[2] && height[1] == height[2] && MOST_ROWS_OF_MCU % height[0] == 0;
}

int planes_plan(struct planes *planes, const struct filter *luma, int origin, int height) {
  planes->luma = luma, planes->origin = origin;
  if (filter_plan_chroma(&planes->chroma, luma, origin, height, planes->down)) return -1;
  int groups = luma->groups > planes->chroma.groups ? luma->groups : planes->chroma.groups;
  /* A row of MCUs comes at once, and luma may have to wait for chroma's next one. None may wrap around. */
  int rows = 4 * groups + 2 * MOST_ROWS_OF_MCU;
  return planes->ring_rows = (rows + MOST_ROWS_OF_MCU - 1) / MOST_ROWS_OF_MCU * MOST_ROWS_OF_MCU;
}

/* The blocks of one MCU after the other, along a row of them. */
struct mcu {
  _Alignas(64) JBLOCK coefficients[D_MAX_BLOCKS_IN_MCU];
  JBLOCKROW places[D_MAX_BLOCKS_IN_MCU];
  struct block blocks[D_MAX_BLOCKS_IN_MCU + 1];         /* one more for the last of an odd number to go with */
  jpeg_component_info *components[D_MAX_BLOCKS_IN_MCU]; /* whose they are */
  size_t steps[D_MAX_BLOCKS_IN_MCU];                    /* bytes from a block's samples to those in the next MCU */
  int count, is_scaled;
};

/* Have the blocks' samples go to the left of the rings, in the rows that come next. */
static void lay_out(struct mcu *mcu, const struct planes *planes, const struct jpeg_decompress_struct *jpeg) {
  mcu->count = mcu->is_scaled = 0;
  for (int i = 0; i < jpeg->comps_in_scan; i++) {
    jpeg_component_info *component = jpeg->cur_comp_info[i];
    int c = component->component_index, width = BLOCK_WIDTH(component), height = BLOCK_HEIGHT(component);
    int place = planes->rows / (c ? planes->down : 1) % planes->ring_rows;
    uint8_t *row = planes->rings[c] + planes->stride * (size_t)place;
    mcu->is_scaled |= width != DCTSIZE || height != DCTSIZE;
    for (int y = 0; y < component->MCU_height; y++, row += planes->stride * (size_t)height)
      for (int x = 0; x < component->MCU_width; x++, mcu->count++) {
        JCOEF *coefficients = mcu->coefficients[mcu->count];
        mcu->places[mcu->count] = &mcu->coefficients[mcu->count];
        mcu->blocks[mcu->count] =
            (struct block){coefficients, component->quant_table->quantval, row + x * width, planes->stride};
        mcu->components[mcu->count] = component;
        mcu->steps[mcu->count] = (size_t)(component->MCU_width * width);
      }
  }
}

static void transform_by_libjpeg(struct mcu *mcu, int i, struct jpeg_decompress_struct *jpeg) {
  jpeg_component_info *component = mcu->components[i];
  const struct block *block = &mcu->blocks[i];
  JSAMPROW rows[DCTSIZE];
  for (int y = 0; y < DCTSIZE; y++) rows[y] = block->samples + block->stride * (size_t)y;
  jpeg->idct->inverse_DCT[component->component_index](jpeg, component, mcu->coefficients[i], rows, 0);
}

/* Form the samples of an MCU; those of the next one go to its right. */
static void transform(struct mcu *mcu, struct jpeg_decompress_struct *jpeg, const struct kernels *kernels) {
  int can_take_two = kernels->inverse_dct && !mcu->is_scaled;
  mcu->blocks[mcu->count] = mcu->blocks[mcu->count - 1];
  for (int i = 0; i < mcu->count; i += 2) {
    if (can_take_two && !kernels->inverse_dct(&mcu->blocks[i], &mcu->blocks[i + 1])) continue;
    transform_by_libjpeg(mcu, i, jpeg);
    if (i + 1 < mcu->count) transform_by_libjpeg(mcu, i + 1, jpeg);
  }
  for (int i = 0; i < mcu->count; i++) mcu->blocks[i].samples += mcu->steps[i];
}

int planes_read(struct planes *planes, struct jpeg_decompress_struct *jpeg, struct entropy *entropy,
                const struct kernels *kernels, int first) {
  struct mcu mcu;
  int rows = jpeg->comp_info[0].v_samp_factor * BLOCK_HEIGHT(&jpeg->comp_info[0]);
  int is_wanted = planes->rows + rows > first;
  if (is_wanted) lay_out(&mcu, planes, jpeg);
  for (JDIMENSION column = 0; column < jpeg->MCUs_per_row; column++) {
    int has_place = is_wanted && column >= entropy->first_column && column <= entropy->last_column;
    if (has_place) memset(mcu.coefficients, 0, sizeof *mcu.coefficients * (size_t)mcu.count);
    if (entropy_decode(entropy, is_wanted ? mcu.places : NULL)) return -1;
    if (has_place) transform(&mcu, jpeg, kernels);
  }
  planes->rows += rows, planes->chroma_rows = planes->rows / planes->down;
  return 0;
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
