/* Lists of changes of decoded images, in place: those that RandAugment and its like are made of, with Pillow's pixels.
 *
 * imagestream/augment/operations.py draws up the lists and says what each change means. */
#include "affine.h"
#include "blur.h"
#include "pointwise.h"
#include "resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OPERATION_NUMBERS = 10, MOST_CHAINS = 100 };

/* Numbers that are whole are doubles too, so that a batch's operations are one array. */
struct operation {
  double code; /* of enum code */
  double numbers[OPERATION_NUMBERS];
};

/* operations.py knows these numbers. */
enum code {
  BRIGHTNESS, /* factor */
  CONTRAST,   /* factor */
  COLOR,      /* factor */
  SHARPNESS,  /* factor */
  POSTERIZE,  /* bits that are kept */
  SOLARIZE,   /* level from which on it is inverted */
  SOLARIZE_ADD, /* what is added, level below which it is */
  AUTOCONTRAST,
  EQUALIZE,
  AFFINE,    /* matrix, 6; resample; fill, 3 */
  BLUR,      /* radius, px */
  ERASE,     /* top, left, height, width; colour, 3 */
  MIX_BEGIN, /* the picture is kept, and chains are begun from it */
  MIX_CHAIN, /* the weight of the chain that ends here; the next one begins */
  MIX_END,   /* the share of the chains' weighted sum; the picture has the rest */
};

struct work {
  uint8_t *pixels; /* (height, width, 3), RGB */
  int height, width;
  size_t bytes;
  const struct pointwise *loops;
  int has_avx2;
  uint8_t *copy;   /* of the picture, for what cannot work in place */
  uint8_t *chains; /* the picture as it was, and what each chain has made of it so far */
  int chain_count, chain_capacity;
  float weights[MOST_CHAINS];
};

static int whole(double number, int least, int most) {
  return !(number > least) ? least : number > most ? most : (int)number;
}

/* ---- by tables -------------------------------------------------------------------------------------------------- */

static uint8_t clip(double level) {
  return !(level > 0.0) ? 0 : level >= 255.0 ? 255 : (uint8_t)level;
}

static void look_up_in_one(struct work *work, const uint8_t *table) {
  uint8_t tables[3][256];
  for (int c = 0; c < 3; c++) memcpy(tables[c], table, 256);
  work->loops->look_up(work->pixels, work->bytes / 3, (const uint8_t(*)[256])tables);
}

static void solarize_add(struct work *work, int added, int below) {
  uint8_t table[256];
  for (int level = 0; level < 256; level++) table[level] = clip(level < below ? level + added : level);
  look_up_in_one(work, table);
}

static void autocontrast(struct work *work) {
  uint8_t tables[3][256], least[3], most[3];
  work->loops->extremes(work->pixels, work->bytes / 3, least, most);
  if (!(least[0] | least[1] | least[2]) && (most[0] & most[1] & most[2]) == 255) return; /* as in most photographs */
  for (int c = 0; c < 3; c++) {
    double scale = most[c] > least[c] ? 255.0 / (most[c] - least[c]) : 1.0;
    double offset = most[c] > least[c] ? -least[c] * scale : 0.0;
    for (int level = 0; level < 256; level++) tables[c][level] = clip(level * scale + offset);
  }
  work->loops->look_up(work->pixels, work->bytes / 3, (const uint8_t(*)[256])tables);
}

static void equalized(const uint32_t *histogram, uint8_t *table) {
  uint64_t sum = 0, last = 0;
  for (int level = 0; level < 256; level++)
    if (histogram[level]) sum += histogram[level], last = histogram[level];
  uint64_t step = (sum - last) / 255, at = step / 2;
  for (int level = 0; level < 256; level++) {
    table[level] = step ? clip((double)(at / step)) : (uint8_t)level;
    at += histogram[level];
  }
}

static void equalize(struct work *work) {
  uint32_t histograms[4][3][256]; /* four by turns, for neighbours are often alike */
  uint8_t tables[3][256];
  size_t count = work->bytes / 3;
  const uint8_t *pixel = work->pixels;
  memset(histograms, 0, sizeof histograms);
  for (size_t i = 0; i < count; i++, pixel += 3)
    for (int c = 0; c < 3; c++) histograms[i % 4][c][pixel[c]]++;
  for (int c = 0; c < 3; c++) {
    for (int level = 0; level < 256; level++)
      histograms[0][c][level] += histograms[1][c][level] + histograms[2][c][level] + histograms[3][c][level];
    equalized(histograms[0][c], tables[c]);
  }
  work->loops->look_up(work->pixels, count, (const uint8_t(*)[256])tables);
}

/* ---- others ----------------------------------------------------------------------------------------------------- */

/* Image.blend with one level everywhere. */
static void blend_with(struct work *work, int from, float factor) {
  enum { STEP = 4096 };
  uint8_t level[STEP];
  memset(level, from, sizeof level);
  for (size_t at = 0; at < work->bytes; at += STEP) {
    size_t step = work->bytes - at < STEP ? work->bytes - at : STEP;
    work->loops->blend(level, work->pixels + at, step, factor, work->pixels + at);
  }
}

static void contrast(struct work *work, float factor) {
  size_t count = work->bytes / 3;
  double mean = (double)work->loops->sum_of_grey(work->pixels, count) / (double)count;
  blend_with(work, (int)(mean + 0.5), factor);
}

static void sharpen(struct work *work, float factor) {
  size_t row = 3 * (size_t)work->width;
  for (int y = 1; y + 1 < work->height; y++) { /* Pillow's filter leaves the outermost pixels */
    const uint8_t *at = work->pixels + row * (size_t)y;
    const uint8_t *rows[3] = {at - row, at, at + row};
    work->loops->smooth(rows, row, work->copy + row * (size_t)y);
  }
  for (int y = 1; work->width > 2 && y + 1 < work->height; y++) {
    size_t at = row * (size_t)y + 3;
    work->loops->blend(work->copy + at, work->pixels + at, row - 6, factor, work->pixels + at);
  }
}

static int transform(struct work *work, const double *numbers) {
  struct affine affine = {.resample = whole(numbers[6], -1, 9)};
  memcpy(affine.matrix, numbers, sizeof affine.matrix);
  for (int c = 0; c < 3; c++) affine.fill[c] = clip(numbers[7 + c]);
  memcpy(work->copy, work->pixels, work->bytes);
  return affine_transform(&affine, work->copy, work->width, work->height, work->has_avx2, work->pixels);
}

static int erase(struct work *work, const double *numbers) {
  int top = whole(numbers[0], -1, work->height), height = whole(numbers[2], -1, work->height);
  int left = whole(numbers[1], -1, work->width), width = whole(numbers[3], -1, work->width);
  if (top < 0 || left < 0 || height < 0 || width < 0 || height > work->height - top || width > work->width - left)
    return -1;
  const uint8_t colour[3] = {clip(numbers[4]), clip(numbers[5]), clip(numbers[6])};
  for (int y = top; y < top + height; y++) {
    uint8_t *row = work->pixels + 3 * ((size_t)y * (size_t)work->width + (size_t)left);
    for (int x = 0; x < width; x++) memcpy(row + 3 * x, colour, 3);
  }
  return 0;
}

/* Memory for one more picture after the chains so far. */
static uint8_t *next_chain(struct work *work) {
  if (work->chain_count == work->chain_capacity) {
    uint8_t *chains = realloc(work->chains, work->bytes * (size_t)(work->chain_capacity + 4));
    if (!chains) return NULL;
    work->chains = chains, work->chain_capacity += 4;
  }
  return work->chains + work->bytes * (size_t)work->chain_count++;
}

static int mix_begin(struct work *work) {
  work->chain_count = 0;
  uint8_t *original = next_chain(work);
  if (!original) return -1;
  memcpy(original, work->pixels, work->bytes);
  return 0;
}

static int mix_chain(struct work *work, float weight) {
  if (!work->chain_count || work->chain_count > MOST_CHAINS) return -1;
  work->weights[work->chain_count - 1] = weight;
  uint8_t *chain = next_chain(work);
  if (!chain) return -1;
  memcpy(chain, work->pixels, work->bytes);
  memcpy(work->pixels, work->chains, work->bytes);
  return 0;
}

/* In single precision, chain by chain, as numpy adds them up. */
static int mix_end(struct work *work, float share) {
  enum { STEP = 2048 };
  float sums[STEP];
  if (!work->chain_count) return -1;
  for (size_t at = 0; at < work->bytes; at += STEP) {
    size_t step = work->bytes - at < STEP ? work->bytes - at : STEP;
    memset(sums, 0, sizeof sums);
    for (int chain = 1; chain < work->chain_count; chain++)
      work->loops->add_weighted(sums, work->chains + work->bytes * (size_t)chain + at, step, work->weights[chain - 1]);
    work->loops->mix(work->pixels + at, step, share, sums);
  }
  work->chain_count = 0;
  return 0;
}

/* What keeps levels within 32 bits; NaN does not. */
static int is_factor(float factor) {
  return fabsf(factor) <= 65536.0f;
}

static int apply(struct work *work, const struct operation *operation) {
  const double *n = operation->numbers;
  float factor = (float)n[0];
  enum code code = (enum code)whole(operation->code, -1, 999);
  if (code <= SHARPNESS && !is_factor(factor)) return -1;
  switch (code) {
    case BRIGHTNESS: return blend_with(work, 0, factor), 0;
    case CONTRAST: return contrast(work, factor), 0;
    case COLOR: return work->loops->saturate(work->pixels, work->bytes / 3, factor), 0;
    case SHARPNESS: return sharpen(work, factor), 0;
    case POSTERIZE: return work->loops->mask(work->pixels, work->bytes, (uint8_t)(0xFF << (8 - whole(n[0], 0, 8)))), 0;
    case SOLARIZE: return work->loops->solarize(work->pixels, work->bytes, whole(ceil(n[0]), 0, 256)), 0;
    case SOLARIZE_ADD: return solarize_add(work, whole(n[0], -255, 255), whole(n[1], 0, 256)), 0;
    case AUTOCONTRAST: return autocontrast(work), 0;
    case EQUALIZE: return equalize(work), 0;
    case AFFINE: return transform(work, n);
    case BLUR: return gaussian_blur(work->pixels, work->width, work->height, factor, work->loops, work->copy);
    case ERASE: return erase(work, n);
    case MIX_BEGIN: return mix_begin(work);
    case MIX_CHAIN: return mix_chain(work, factor);
    case MIX_END: return mix_end(work, factor);
  }
  return -1;
}

/* Change `images` (count, height, width, 3), each by its operations, which follow each other.
 *
 * Args: counts: (count,) operations of each; path: as in decode.c, of which the portable one and AVX2 are used.
 * Returns -1, or which operation is out of bounds or lacks memory; then its image is undefined. -2: the images are too
 * large, there is no memory for any, or this processor lacks the path. */
long augment_batch(uint8_t *images, int count, int height, int width, const struct operation *operations,
                   const int32_t *counts, int path) {
  struct work work = {.height = height, .width = width, .bytes = 3 * (size_t)height * (size_t)width};
  long at = 0, failed = -1;
  if (height < 1 || width < 1 || height > LARGEST_EDGE || width > LARGEST_EDGE || !kernels_for((enum path)path)) return -2;
  work.has_avx2 = path != PATH_PORTABLE && kernels_for(PATH_AVX2) != NULL;
#ifdef HAVE_X86
  work.loops = work.has_avx2 ? &pointwise_avx2 : &pointwise_portable;
#else
  work.loops = &pointwise_portable;
#endif
  work.copy = malloc(work.bytes + PIXEL_SLACK);
  if (!work.copy) return -2;
  for (int i = 0; i < count && failed < 0; i++) {
    work.pixels = images + work.bytes * (size_t)i, work.chain_count = 0;
    for (long end = at + counts[i]; at < end && failed < 0; at++)
      if (apply(&work, operations + at)) failed = at;
  }
  free(work.copy), free(work.chains);
  return failed;
}
