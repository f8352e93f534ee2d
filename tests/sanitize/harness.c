/* Runs the decoder over a corpus of damaged images, and augmentations over what comes out, for AddressSanitizer and
 * UBSan, see run.py; and to compare the pixels of two machines, see tests/wheels.
 *
 *     harness CORPUS      of records: 4 bytes of length, little end first; then the image
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int decode_batch(const uint8_t *const *jpegs, const size_t *lengths, const double *boxes, const uint8_t *flips,
                 const int32_t *wholes, const uint8_t *cubics, int count, int size, int bounded, int resize_in, int threads,
                 int path, uint8_t *out, int32_t *status, char *messages);
int is_sound(const uint8_t *data, size_t length);
void image_sizes(const uint8_t *const *jpegs, const size_t *lengths, int count, int32_t *sizes);

enum { CODES = 17, NUMBERS = 10, OPERATIONS = 4 }; /* of augment.c, and two codes that it does not have */
struct operation {
  double code, numbers[NUMBERS];
};
long augment_batch(uint8_t *images, int count, int height, int width, const struct operation *operations,
                   const int32_t *counts, int path);

enum { BATCH = 50, MESSAGE_BYTES = 256, LARGEST_EDGE = 2000 };

static uint64_t state = 1;

/* A linear congruential generator (Knuth, MMIX): the same numbers on every system. */
static double draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (double)(state >> 11) / 9007199254740992.0;
}

static void draw_box(const int32_t *size, int bounded, double *box) {
  double width = size[0] ? size[0] : 64, height = size[1] ? size[1] : 64;
  double left = draw() * width, top = draw() * height;
  box[0] = left, box[1] = top;
  box[2] = left + draw() * (width - left), box[3] = top + draw() * (height - top);
  if (bounded) {
    box[0] = (int)left, box[1] = (int)top;
    box[2] = (int)box[2] + 1, box[3] = (int)box[3] + 1;
  }
  if (draw() < 0.01) box[(int)(draw() * 4)] = draw() < 0.5 ? -1e300 : 1e300;
}

/* The edge that an image is resized to and where the part begins, of each axis; now and then out of bounds, or none. */
static void draw_whole(int size, int32_t *whole) {
  for (int axis = 0; axis < 2; axis++) {
    whole[axis] = draw() < 0.2 ? 0 : size + (int)(draw() * 300);
    whole[2 + axis] = (int)(draw() * (whole[axis] - size + 1)) - (draw() < 0.02);
  }
}

/* A number as augmentations have them; now and then one that none has. */
static double draw_number(int size) {
  static const double odd[] = {-1e300, 1e300, -1, 0, 1, 1e9};
  double kind = draw();
  if (kind < 0.02) return odd[(int)(draw() * 6)];
  if (kind < 0.03) return (double)NAN;
  return kind < 0.4 ? (int)(draw() * 4) : kind < 0.8 ? draw() * 2.5 - 0.5 : (draw() - 0.3) * size;
}

/* The operations of each image; the numbers of a matrix are near those that turn and shift. */
static void draw_operations(int count, int size, struct operation *operations, int32_t *counts) {
  for (int i = 0; i < count; i++) {
    counts[i] = (int)(draw() * (OPERATIONS + 1));
    for (int o = 0; o < counts[i]; o++, operations++) {
      operations->code = (int)(draw() * CODES);
      for (int n = 0; n < NUMBERS; n++) operations->numbers[n] = draw_number(size);
      if (draw() < 0.9) operations->numbers[6] = (int)(draw() * 2) + 2;
    }
  }
}

/* FNV-1a, of 64 bits. */
static uint64_t hash_on(uint64_t hash, const uint8_t *data, size_t length) {
  for (size_t i = 0; i < length; i++) hash = (hash ^ data[i]) * 1099511628211u;
  return hash;
}

/* Of what became of each image, and of its pixels where it was decoded. */
static uint64_t hash_of_images(uint64_t hash, const uint8_t *out, size_t image_bytes, const int32_t *status, int count) {
  for (int i = 0; i < count; i++) {
    uint8_t outcome = (uint8_t)status[i];
    hash = hash_on(hash, &outcome, 1);
    if (!status[i]) hash = hash_on(hash, out + image_bytes * (size_t)i, image_bytes);
  }
  return hash;
}

/* Change images in memory of exactly their size, one by one, so that the others' operations follow one that is refused;
 * return a hash of the outcomes. */
static uint64_t hash_of_augmented(uint64_t hash, const uint8_t *images, size_t image_bytes, int size, int count,
                                  const int32_t *status, const struct operation *operations, const int32_t *counts,
                                  int path) {
  for (int i = 0; i < count; operations += counts[i++]) {
    if (status[i]) continue;
    uint8_t *image = malloc(image_bytes);
    memcpy(image, images + image_bytes * (size_t)i, image_bytes);
    uint8_t outcome = (uint8_t)augment_batch(image, 1, size, size, operations, counts + i, path);
    hash = hash_on(hash, &outcome, 1);
    if (outcome == UINT8_MAX) hash = hash_on(hash, image, image_bytes); /* -1: done */
    free(image);
  }
  return hash;
}

/* Each image in memory of exactly its own size, so that a byte read past it is noticed. */
static int read_batch(FILE *corpus, uint8_t **jpegs, size_t *lengths) {
  int count = 0;
  for (uint8_t head[4]; count < BATCH && fread(head, 1, 4, corpus) == 4; count++) {
    lengths[count] = head[0] + 256u * head[1] + 65536u * head[2];
    jpegs[count] = malloc(lengths[count] ? lengths[count] : 1);
    if (!jpegs[count] || fread(jpegs[count], 1, lengths[count], corpus) != lengths[count]) exit(2);
  }
  return count;
}

int main(int argc, char **argv) {
  static const int edges[] = {1, 5, 32, 88, 97};
  FILE *corpus = argc == 2 ? fopen(argv[1], "rb") : NULL;
  if (!corpus) return 2;
  uint8_t *jpegs[BATCH], flips[BATCH], cubics[BATCH];
  size_t lengths[BATCH];
  double boxes[4 * BATCH];
  int32_t sizes[2 * BATCH], wholes[4 * BATCH], status[BATCH];
  char messages[BATCH * MESSAGE_BYTES];
  long images = 0, decoded = 0, sound = 0;
  uint64_t hash = 14695981039346656037u;
  for (int batch = 0, count; (count = read_batch(corpus, jpegs, lengths)) > 0; batch++) {
    image_sizes((const uint8_t *const *)jpegs, lengths, count, sizes);
    int kept = 0, size = edges[batch % 5];
    for (int i = 0; i < count; i++) { /* a forged size would only cost time */
      if (sizes[2 * i] > LARGEST_EDGE || sizes[2 * i + 1] > LARGEST_EDGE) {
        free(jpegs[i]);
        continue;
      }
      sound += is_sound(jpegs[i], lengths[i]);
      jpegs[kept] = jpegs[i], lengths[kept] = lengths[i];
      draw_box(sizes + 2 * i, batch % 2, boxes + 4 * kept);
      draw_whole(size, wholes + 4 * kept);
      cubics[kept] = draw() < 0.3;
      flips[kept++] = draw() < 0.5;
    }
    size_t image_bytes = (size_t)size * (size_t)size * 3;
    uint8_t *out = malloc((size_t)kept * image_bytes + 1);
    for (int path = 0; path <= 3; path++) { /* of those that this processor lacks, -1 is returned */
      int failed = decode_batch((const uint8_t *const *)jpegs, lengths, boxes, flips, wholes, cubics, kept, size,
                                batch % 2, batch / 2 % 3, batch % 4 % 3 + 1, path, out, status, messages);
      if (path == 0) images += kept, decoded += kept - failed, hash = hash_of_images(hash, out, image_bytes, status, kept);
    }
    struct operation operations[BATCH * OPERATIONS];
    int32_t counts[BATCH];
    draw_operations(kept, size, operations, counts);
    uint64_t before = hash, after[2];
    for (int path = 0; path < 2; path++) /* the best, and the portable one */
      after[path] = hash_of_augmented(before, out, image_bytes, size, kept, status, operations, counts, path);
    if (after[0] != after[1]) return puts("augmentations differ between the paths"), 3;
    hash = after[0];
    free(out);
    for (int i = 0; i < kept; i++) free(jpegs[i]);
  }
  fclose(corpus);
  printf("%ld images, %ld of them decoded, %ld sound; pixels %016llx\n", images, decoded, sound, (unsigned long long)hash);
  return images == 0;
}
