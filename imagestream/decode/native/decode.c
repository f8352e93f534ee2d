/* A batch of JPEGs into uint8 (B, size, size, 3): only the part of each that its crop needs.
 *
 * libjpeg-turbo decodes the columns of the crop (jpeg_crop_scanline) from its first row on (jpeg_skip_scanlines) and is
 * stopped after its last; the Huffman decoding in between is our own (huffman.c). Each row goes through the horizontal
 * filter while it is in the cache, and an output row is written as soon as its last input row is there. The settings
 * are libjpeg's defaults, as Pillow's are: accurate integer DCT and smooth chroma upsampling. A border is decoded
 * around the crop and thrown away, so that chroma next to the cut is interpolated as in a decode of the whole image.
 *
 * Where that is asked for, and the crop shrinks, rows of baseline images are taken before chroma is interpolated
 * (planes.c); libjpeg then reads the headers, and does the inverse DCT where our own (inverse_dct.c) does not.
 */
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "huffman.h"
#include "planes.h"
#include "resample.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is needed; this is another libjpeg"
#endif

/* The part of libjpeg's entropy decoder that is replaced by ours; the first two members of this structure have been
 * these from libjpeg 6b (1998) to libjpeg-turbo 3, and jpegint.h, which declares it, is not installed everywhere. */
#if LIBJPEG_TURBO_VERSION_NUMBER >= 4000000
#error "see whether jpegint.h of this libjpeg-turbo still declares these members, and those of planes.c, first"
#endif
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr jpeg);
  boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
};

#define TEXT(macro) TEXT_(macro)
#define TEXT_(macro) #macro

enum {
  MESSAGE_BYTES = 256, /* of each image; JMSG_LENGTH_MAX is 200 */
  ROWS_PER_CALL = 4,   /* as many as libjpeg hands out at most, with 4x vertical sampling */
  MISALIGNMENT = 4,    /* bytes; libjpeg-turbo writes aligned rows past the cache, and here they are read at once */
  BORDER = 2,          /* px; smooth upsampling of 2:1 chroma looks one chroma pixel to each side */
};

/* What became of an image; imagestream/decode/native/decoder.py knows these numbers. */
enum status { DECODED = 0, NOT_FOR_US = 1, DAMAGED = 2, OUT_OF_MEMORY = 3, IRREGULAR = 4 };

/* Where crops shrink: after the colours are worked out, as in Pillow; before that (planes.h); or the same, and in the
 * DCT as far as that goes. decoder.py knows these numbers too. */
enum resize_in { IN_RGB = 0, IN_YCBCR = 1, IN_DCT = 2 };

/* Beyond this Pillow refuses an image as a decompression bomb (twice Image.MAX_IMAGE_PIXELS). */
static const uint64_t MAX_PIXELS = 178956970;

struct batch {
  const uint8_t *const *jpegs; /* (count,) */
  const size_t *lengths;       /* (count,) bytes */
  const double *boxes;         /* (count, 4) left, top, right, bottom in px of the source */
  const uint8_t *flips;        /* (count,) 0 or 1 */
  const int32_t *wholes;       /* (count, 4) or NULL; see struct part. Zeros: none */
  const uint8_t *cubics;       /* (count,) 0 or 1: resized bilinearly or bicubically, the latter in RGB alone */
  int count, size, bounded;
  enum resize_in resize_in;
  uint8_t *out;     /* (count, size, size, 3) */
  int32_t *status;  /* (count,) */
  char *messages;   /* (count, MESSAGE_BYTES) */
  const struct kernels *kernels;
  atomic_int next;
};

struct memory {
  uint8_t *data;
  size_t bytes;
};

struct worker {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  jmp_buf stop;
  enum status status;
  char *message;
  struct entropy entropy;
  struct filter across, down;
  struct memory decoded, narrowed; /* rows as libjpeg gives them, or planes; rows after the horizontal filter, a ring */
  struct memory pointers;          /* to the rows of one output row */
  struct planes planes;
};

/* The pixels of the decoded (perhaps scaled) image that one axis of the box needs. */
struct axis {
  int origin;     /* where the filter's pixel 0 lies */
  int first, end; /* pixels that have weight */
};

/* ---- errors --------------------------------------------------------------------------------------------------- */

static _Noreturn void give_up(struct worker *worker, enum status status, const char *why) {
  worker->status = status;
  snprintf(worker->message, MESSAGE_BYTES, "%s", why);
  longjmp(worker->stop, 1);
}

static void on_error(j_common_ptr jpeg) {
  struct worker *worker = jpeg->client_data;
  char text[JMSG_LENGTH_MAX];
  jpeg->err->format_message(jpeg, text);
  give_up(worker, DAMAGED, text);
}

/* Pillow ignores libjpeg's warnings (bad Huffman codes, stray bytes), so that many damaged files still decode. */
static void on_message(j_common_ptr jpeg, int level) {
  (void)jpeg, (void)level;
}

/* All the data is in memory from the start; whoever asks for more has come to the end too early. */
static boolean on_end_of_data(j_decompress_ptr jpeg) {
  give_up(jpeg->client_data, DAMAGED, "image file is truncated");
}

static void skip_data(j_decompress_ptr jpeg, long bytes) {
  if (bytes <= 0) return;
  if ((size_t)bytes > jpeg->src->bytes_in_buffer) on_end_of_data(jpeg);
  jpeg->src->next_input_byte += bytes;
  jpeg->src->bytes_in_buffer -= (size_t)bytes;
}

static void nothing(j_decompress_ptr jpeg) {
  (void)jpeg;
}

static size_t round_up(size_t bytes) {
  return (bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
}

static uint8_t *reserve(struct worker *worker, struct memory *memory, size_t bytes) {
  if (bytes > memory->bytes) {
    free(memory->data);
    memory->bytes = 0;
    bytes = round_up(bytes);
    memory->data = aligned_alloc(ROW_ALIGNMENT, bytes);
    if (!memory->data) give_up(worker, OUT_OF_MEMORY, "out of memory");
    memset(memory->data, 0, bytes); /* kernels read past a row's end, where weights are 0 */
    memory->bytes = bytes;
  }
  return memory->data;
}

/* ---- markers ---------------------------------------------------------------------------------------------------- */

/* The marker of the frame header before the first scan, found as libjpeg finds it; 0 where there is none. */
static int frame_marker(const uint8_t *data, size_t length) {
  enum { FILL = 0xFF, TEM = 0x01, RST0 = 0xD0, RST7 = 0xD7, SOF0 = 0xC0, SOF15 = 0xCF, DHT = 0xC4, JPG = 0xC8, DAC = 0xCC,
         EOI = 0xD9, SOS = 0xDA };
  for (size_t at = 2; at + 3 < length;) {
    int marker = data[at + 1];
    if (data[at] != FILL || marker == FILL) {
      at++;
      continue;
    }
    at += 2;
    if (!marker || marker == TEM || (marker >= RST0 && marker <= RST7)) continue;
    if (marker == EOI || marker == SOS) return 0;
    if (marker >= SOF0 && marker <= SOF15 && marker != DHT && marker != JPG && marker != DAC) return marker;
    size_t segment = ((size_t)data[at] << 8) + data[at + 1];
    at += segment < 2 ? 2 : segment;
  }
  return 0;
}

/* ---- one image ------------------------------------------------------------------------------------------------ */

static void open_jpeg(struct worker *worker, const uint8_t *data, size_t length) {
  struct jpeg_decompress_struct *jpeg = &worker->jpeg;
  jpeg_create_decompress(jpeg); /* anew for each: tables of an earlier image must not serve one that lacks its own */
  jpeg->client_data = worker;
  int marker = frame_marker(data, length);
  /* Of the other processes a lossless one at a smaller scale makes libjpeg-turbo 3.0 and 3.1 write past its buffers. */
  if (marker < 0xC0 || marker > 0xC2) give_up(worker, NOT_FOR_US, "neither SOF0, SOF1 nor SOF2");
  worker->source = (struct jpeg_source_mgr){
      .next_input_byte = data,
      .bytes_in_buffer = length,
      .init_source = nothing,
      .fill_input_buffer = on_end_of_data,
      .skip_input_data = skip_data,
      .resync_to_restart = jpeg_resync_to_restart,
      .term_source = nothing,
  };
  jpeg->src = &worker->source;
  jpeg_read_header(jpeg, TRUE);
  if (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_RGB &&
      jpeg->jpeg_color_space != JCS_GRAYSCALE)
    give_up(worker, NOT_FOR_US, "neither RGB nor greyscale");
  if ((uint64_t)jpeg->image_width * jpeg->image_height > MAX_PIXELS) give_up(worker, NOT_FOR_US, "too large");
  jpeg->out_color_space = JCS_EXT_RGBX;
}

/* The largest of 1, 2, 4, 8 by which the box can shrink in the DCT and still be no smaller than the result. */
static int dct_divisor(const double *box, int size) {
  int divisor = 1;
  while (divisor < 8 && box[2] - box[0] >= 2.0 * divisor * size && box[3] - box[1] >= 2.0 * divisor * size)
    divisor *= 2;
  return divisor;
}

/* Of one axis: the edge that the whole image is resized to, px, and where in it the part that is kept begins. An edge
 * of 0: the box is resized by itself. */
struct part {
  int edge, start;
};

/* Plan the filter of one axis.
 *
 * Args: from, to: the box's edges in px of the original; edge: the original's; scaled_edge: the decoded image's. */
static struct axis plan_axis(struct worker *worker, const struct batch *batch, struct filter *filter, double from,
                             double to, int edge, int scaled_edge, int divisor, struct part part, int mirrored,
                             int is_cubic, enum weight_bits bits) {
  struct axis axis = {0, 0, 0};
  int source_size = scaled_edge;
  if (batch->bounded || !part.edge)
    part = (struct part){batch->size, 0};
  else if (part.start < 0 || part.start > part.edge - batch->size)
    give_up(worker, NOT_FOR_US, "the part is not within the whole");
  else
    from = 0, to = edge;
  if (!(from >= 0 && from < to && to <= edge)) give_up(worker, NOT_FOR_US, "the box is not within the image");
  if (batch->bounded) {
    int end = ((int)to + divisor - 1) / divisor;
    from = (int)from, to = (int)to;
    axis.origin = (int)from / divisor;
    source_size = (end < scaled_edge ? end : scaled_edge) - axis.origin;
  }
  if (filter_plan(filter, source_size, (float)(from / divisor - axis.origin), (float)(to / divisor - axis.origin),
                  batch->size, part.edge, part.start, mirrored, is_cubic, bits))
    give_up(worker, NOT_FOR_US, "the box cannot be scaled so far");
  int lowest = mirrored ? filter->size - 1 : 0, highest = filter->size - 1 - lowest;
  axis.first = axis.origin + filter->first[lowest];
  axis.end = axis.origin + filter->first[highest] + filter->count[highest];
  return axis;
}

static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
  struct worker *worker = jpeg->client_data;
  if (entropy_decode(&worker->entropy, blocks)) give_up(worker, IRREGULAR, "irregular Huffman data");
  return TRUE;
}

/* The width of an MCU, px. */
static int mcu_edge(const struct jpeg_decompress_struct *jpeg) {
  return (int)jpeg->scale_num * (jpeg->comps_in_scan == 1 ? 1 : jpeg->max_h_samp_factor);
}

/* Have our own entropy decoder work in libjpeg's, where it can. */
static void speed_up(struct worker *worker, int offset) {
  struct jpeg_decompress_struct *jpeg = &worker->jpeg;
  int edge = mcu_edge(jpeg), last = (offset + (int)jpeg->output_width - 1) / edge;
  if (!jpeg_has_multiple_scans(jpeg) &&
      !entropy_start(&worker->entropy, jpeg, (JDIMENSION)(offset / edge), (JDIMENSION)last, 0))
    jpeg->entropy->decode_mcu = decode_mcu;
}

/* Have libjpeg decode the columns of the crop alone; return the first that it will give. */
static int cut_columns(struct jpeg_decompress_struct *jpeg, const struct axis *axis) {
  int width = (int)jpeg->output_width;
  int left = axis->first > BORDER ? axis->first - BORDER : 0;
  int right = axis->end < width - BORDER ? axis->end + BORDER : width;
  JDIMENSION offset = (JDIMENSION)left, columns = (JDIMENSION)(right - left);
  jpeg_crop_scanline(jpeg, &offset, &columns);
  return (int)offset;
}

/* Memory for the planes, `width` px of them, `mcus` px with what the last MCU has beyond; returns that for one row of
 * output. */
static uint8_t *reserve_planes(struct worker *worker, size_t width, size_t mcus, size_t ring_rows, size_t row_bytes) {
  struct planes *planes = &worker->planes;
  planes->stride = round_up(mcus + PLANE_MARGIN);
  size_t plane = planes->stride * (ring_rows + 1) + 2 * PLANE_MARGIN;
  size_t coloured = round_up(4 * width + PLANE_MARGIN + SOURCE_SLACK(worker->across.groups));
  uint8_t *memory = reserve(worker, &worker->decoded, 3 * plane + coloured + row_bytes + OUTPUT_SLACK);
  for (int c = 0; c < 3; c++, memory += plane) {
    planes->width[c] = (int)(c ? (width + (size_t)planes->across - 1) / (size_t)planes->across : width);
    planes->rings[c] = memory;
    planes->narrowed[c] = memory + planes->stride * ring_rows + PLANE_MARGIN;
  }
  planes->colours = memory;
  planes->taps = (const uint8_t **)(void *)reserve(worker, &worker->pointers, sizeof(uint8_t *) * ring_rows);
  return memory + coloured;
}

/* Resize Y, Cb and Cr, and work out the colours of what is left. */
static void render_planes(struct worker *worker, const struct batch *batch, const struct axis *x, const struct axis *y,
                          uint8_t *out) {
  struct jpeg_decompress_struct *jpeg = &worker->jpeg;
  struct planes *planes = &worker->planes;
  int edge = mcu_edge(jpeg), left = x->first > BORDER ? (x->first - BORDER) / edge * edge : 0;
  int right = x->end + BORDER < (int)jpeg->output_width ? x->end + BORDER : (int)jpeg->output_width;
  int last = (right - 1) / edge, ring_rows = planes_plan(planes, &worker->down, y->origin, (int)jpeg->output_height);
  if (ring_rows < 0) give_up(worker, OUT_OF_MEMORY, "out of memory");
  if (entropy_start(&worker->entropy, jpeg, (JDIMENSION)(left / edge), (JDIMENSION)last, 0))
    give_up(worker, IRREGULAR, "not a baseline scan");
  filter_shift(&worker->across, x->origin - left);
  size_t bytes = 3 * (size_t)batch->size;
  uint8_t *last_row = reserve_planes(worker, (size_t)(right - left), (size_t)((last + 1) * edge - left),
                                     (size_t)ring_rows, bytes);
  planes->rows = planes->chroma_rows = 0;
  for (int o = 0; o < batch->size;) {
    if (planes_read(planes, jpeg, &worker->entropy, batch->kernels, y->first - BORDER))
      give_up(worker, IRREGULAR, "irregular Huffman data");
    for (; o < batch->size && planes_have(planes, o); o++) {
      int has_slack = bytes * (size_t)(batch->size - 1 - o) >= OUTPUT_SLACK;
      uint8_t *row = out + bytes * (size_t)o;
      planes_write(planes, batch->kernels, &worker->across, o, has_slack ? row : last_row);
      if (!has_slack) memcpy(row, last_row, bytes);
    }
  }
}

static void write_finished_rows(struct worker *worker, const struct batch *batch, const struct axis *axis, int row,
                                int ring_rows, size_t stride, int *written, uint8_t *out) {
  const struct filter *down = &worker->down;
  const uint8_t **rows = (const uint8_t **)(void *)worker->pointers.data;
  size_t bytes = 3 * (size_t)batch->size;
  for (; *written < batch->size; ++*written) {
    int first = axis->origin + down->first[*written], count = down->count[*written];
    if (first + count - 1 > row) return;
    for (int t = 0; t < 4 * down->groups; t++)
      rows[t] = worker->narrowed.data + stride * (size_t)((first + (t < count ? t : 0)) % ring_rows);
    batch->kernels->vertical(rows, down, *written, bytes, out + bytes * (size_t)*written);
  }
}

/* Whether a progressive JPEG has every bit of every coefficient. Of one that ends before, libjpeg guesses the rest from
   the blocks around, which are others where columns and rows are left out (smoothing_ok in its jdcoefct.c). */
static int is_complete(const struct jpeg_decompress_struct *jpeg) {
  if (!jpeg->progressive_mode || !jpeg->coef_bits) return 1;
  for (int component = 0; component < jpeg->num_components; component++)
    for (int place = 0; place < DCTSIZE2; place++)
      if (jpeg->coef_bits[component][place]) return 0;
  return 1;
}

static void render(struct worker *worker, const struct batch *batch, int index, int with_libjpeg_alone) {
  struct jpeg_decompress_struct *jpeg = &worker->jpeg;
  const double *box = batch->boxes + 4 * (size_t)index;
  int is_cubic = batch->cubics[index];
  enum resize_in resize_in = is_cubic ? IN_RGB : batch->resize_in;
  int divisor = resize_in == IN_DCT ? dct_divisor(box, batch->size) : 1;
  jpeg->scale_num = 8 / (unsigned)divisor, jpeg->scale_denom = 8;
  jpeg_calc_output_dimensions(jpeg);
  int in_planes = resize_in != IN_RGB && !with_libjpeg_alone && box[3] - box[1] > divisor * batch->size &&
                  planes_fit(&worker->planes, jpeg);
  double most = MOST_COARSE_SHRINK * divisor * batch->size;
  enum weight_bits bits = in_planes && box[2] - box[0] <= most && box[3] - box[1] <= most ? COARSE : FINE;
  const int32_t none[4] = {0, 0, 0, 0}, *whole = batch->wholes ? batch->wholes + 4 * (size_t)index : none;
  struct axis x = plan_axis(worker, batch, &worker->across, box[0], box[2], (int)jpeg->image_width,
                            (int)jpeg->output_width, divisor, (struct part){whole[0], whole[2]}, batch->flips[index],
                            is_cubic, bits);
  struct axis y = plan_axis(worker, batch, &worker->down, box[1], box[3], (int)jpeg->image_height,
                            (int)jpeg->output_height, divisor, (struct part){whole[1], whole[3]}, 0, is_cubic,
                            bits);
  uint8_t *out = batch->out + 3 * (size_t)batch->size * (size_t)batch->size * (size_t)index;
  jpeg->raw_data_out = in_planes; /* libjpeg lays out nothing beyond the inverse DCT */
  jpeg_start_decompress(jpeg);
  if (!is_complete(jpeg)) give_up(worker, NOT_FOR_US, "a progressive JPEG that ends before its last bits");
  if (in_planes) {
    render_planes(worker, batch, &x, &y, out);
    return;
  }
  int offset = cut_columns(jpeg, &x);
  if (!with_libjpeg_alone) speed_up(worker, offset);
  filter_shift(&worker->across, x.origin - offset);

  size_t decoded_stride = round_up(4 * (size_t)jpeg->output_width + SOURCE_SLACK(worker->across.groups) + MISALIGNMENT);
  size_t stride = round_up(3 * (size_t)batch->size + OUTPUT_SLACK);
  int ring_rows = 4 * worker->down.groups;
  uint8_t *decoded = reserve(worker, &worker->decoded, decoded_stride * ROWS_PER_CALL);
  uint8_t *narrowed = reserve(worker, &worker->narrowed, stride * (size_t)ring_rows);
  reserve(worker, &worker->pointers, sizeof(uint8_t *) * (size_t)ring_rows);
  JSAMPROW rows[ROWS_PER_CALL];
  for (int i = 0; i < ROWS_PER_CALL; i++) rows[i] = decoded + decoded_stride * (size_t)i + MISALIGNMENT;

  int skipped = y.first > BORDER ? y.first - BORDER : 0, written = 0;
  if (skipped) jpeg_skip_scanlines(jpeg, (JDIMENSION)skipped);
  while ((int)jpeg->output_scanline < y.end) {
    int row = (int)jpeg->output_scanline;
    int read = (int)jpeg_read_scanlines(jpeg, rows, ROWS_PER_CALL);
    if (read < 1) give_up(worker, DAMAGED, "image file is truncated");
    for (int i = 0; i < read && row + i < y.end; i++) {
      if (row + i < y.first) continue;
      batch->kernels->horizontal(rows[i], &worker->across,
                                 narrowed + stride * (size_t)((row + i) % ring_rows));
      write_finished_rows(worker, batch, &y, row + i, ring_rows, stride, &written, out);
    }
  }
}

static void start_worker(struct worker *worker, char *message) {
  worker->status = DECODED;
  worker->message = message;
  worker->message[0] = 0;
  memset(&worker->jpeg, 0, sizeof worker->jpeg);
  worker->jpeg.err = jpeg_std_error(&worker->errors);
  worker->errors.error_exit = on_error;
  worker->errors.emit_message = on_message;
  worker->jpeg.client_data = worker;
}

static enum status try_one(struct worker *worker, const struct batch *batch, int index, int with_libjpeg_alone) {
  start_worker(worker, batch->messages + MESSAGE_BYTES * (size_t)index);
  if (!setjmp(worker->stop)) {
    open_jpeg(worker, batch->jpegs[index], batch->lengths[index]);
    render(worker, batch, index, with_libjpeg_alone);
  }
  jpeg_destroy_decompress(&worker->jpeg);
  return worker->status;
}

/* What our entropy decoder finds irregular libjpeg decodes from the start: damage is to look as it does in Pillow. */
static void decode_one(struct worker *worker, const struct batch *batch, int index) {
  enum status status = try_one(worker, batch, index, 0);
  if (status == IRREGULAR) status = try_one(worker, batch, index, 1);
  batch->status[index] = status;
}

/* ---- the batch ------------------------------------------------------------------------------------------------ */

static void *work(void *argument) {
  struct batch *batch = argument;
  struct worker *worker = calloc(1, sizeof *worker);
  for (int index; (index = atomic_fetch_add(&batch->next, 1)) < batch->count;) {
    if (worker)
      decode_one(worker, batch, index);
    else
      batch->status[index] = OUT_OF_MEMORY;
  }
  if (worker) {
    entropy_free(&worker->entropy);
    filter_free(&worker->across), filter_free(&worker->down), filter_free(&worker->planes.chroma);
    free(worker->decoded.data), free(worker->narrowed.data), free(worker->pointers.data);
    free(worker);
  }
  return NULL;
}

/* Decode `count` images; returns how many have a status other than DECODED, or -1 for arguments that make no sense.
 *
 * Args: see struct batch; threads: 1 works in the calling thread alone; path: of enum path, -1 is returned for one that
 * this processor lacks. */
int decode_batch(const uint8_t *const *jpegs, const size_t *lengths, const double *boxes, const uint8_t *flips,
                 const int32_t *wholes, const uint8_t *cubics, int count, int size, int bounded, int resize_in, int threads,
                 int path, uint8_t *out, int32_t *status, char *messages) {
  struct batch batch = {jpegs, lengths, boxes, flips, wholes, cubics, count, size, bounded, (enum resize_in)resize_in,
                        out, status, messages, kernels_for((enum path)path), 0};
  enum { MAX_THREADS = 64, MAX_SIZE = 4096 };
  pthread_t helpers[MAX_THREADS];
  int started = 0, failed = 0;
  if (count < 0 || size < 1 || size > MAX_SIZE || !batch.kernels) return -1;
  while (started < threads - 1 && started < count - 1 && started < MAX_THREADS) {
    if (pthread_create(&helpers[started], NULL, work, &batch)) break; /* fewer threads do the same work */
    started++;
  }
  work(&batch);
  while (started > 0) pthread_join(helpers[--started], NULL);
  for (int i = 0; i < count; i++) failed += status[i] != DECODED;
  return failed;
}

/* Read an image's size from its first frame header; 0, or -1 where Pillow had better look. */
static int frame_size(const uint8_t *data, size_t length, int32_t *size) {
  size_t at = 2;
  if (length < 4 || data[0] != 0xFF || data[1] != 0xD8) return -1;
  while (at + 9 < length && data[at] == 0xFF) {
    uint8_t marker = data[at + 1];
    size_t segment = ((size_t)data[at + 2] << 8) + data[at + 3];
    if (marker >= 0xC0 && marker <= 0xC2) {
      int height = (data[at + 5] << 8) + data[at + 6], width = (data[at + 7] << 8) + data[at + 8];
      if (data[at + 4] != 8 || !height || !width || (uint64_t)height * (uint64_t)width > MAX_PIXELS) return -1;
      size[0] = width, size[1] = height;
      return 0;
    }
    int skippable = (marker >= 0xE0 && marker <= 0xEF) || marker == 0xFE || marker == 0xDB || marker == 0xC4 ||
                    marker == 0xDD;
    if (!skippable || segment < 2 || segment > length - at - 2) return -1;
    at += 2 + segment;
  }
  return -1;
}

/* Fill `sizes` (count, 2) with width and height in px from the headers alone; 0, 0 where Pillow must be asked. */
void image_sizes(const uint8_t *const *jpegs, const size_t *lengths, int count, int32_t *sizes) {
  for (int i = 0; i < count; i++)
    if (frame_size(jpegs[i], lengths[i], sizes + 2 * (size_t)i)) sizes[2 * i] = sizes[2 * i + 1] = 0;
}

/* ---- soundness ------------------------------------------------------------------------------------------------ */

/* Read every code of a baseline JPEG without forming a single value, up to the marker of its end. */
static void read_scan(struct worker *worker) {
  struct jpeg_decompress_struct *jpeg = &worker->jpeg;
  if (jpeg_has_multiple_scans(jpeg)) give_up(worker, NOT_FOR_US, "several scans");
  jpeg_start_decompress(jpeg); /* with the trainer's settings: what libjpeg cannot colour is not sound */
  struct entropy *entropy = &worker->entropy;
  if (entropy_start(entropy, jpeg, 0, 0, 1)) give_up(worker, NOT_FOR_US, "not a baseline scan");
  uint64_t mcus = (uint64_t)jpeg->MCUs_per_row * jpeg->MCU_rows_in_scan;
  for (uint64_t at = 0; at < mcus; at++)
    if (entropy_decode(entropy, NULL)) give_up(worker, IRREGULAR, "irregular Huffman data");
  if (!entropy_is_at_end(entropy)) give_up(worker, IRREGULAR, "the data does not end where the image does");
}

/* Whether an image is a baseline JPEG, RGB or greyscale, without any irregularity up to the marker of its end. What is
 * not may be good all the same; Pillow has to look. */
int is_sound(const uint8_t *data, size_t length) {
  static _Thread_local struct worker *worker; /* kept: most images share one set of Huffman tables */
  char message[MESSAGE_BYTES];
  if (!worker && !(worker = calloc(1, sizeof *worker))) return 0;
  start_worker(worker, message);
  if (!setjmp(worker->stop)) {
    open_jpeg(worker, data, length);
    read_scan(worker);
  }
  jpeg_destroy_decompress(&worker->jpeg);
  return worker->status == DECODED;
}

/* The library this was built with. */
const char *decoder_library(void) {
  return "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION);
}
