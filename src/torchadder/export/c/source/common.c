/* A function that the compiler neither merges with its callers nor copies for each of them: one
 * body for all layers, and what multiplies stays apart from what does not. */
#if defined(__clang__)
#define SEPARATE __attribute__((noinline))
#elif defined(__GNUC__) && __GNUC__ >= 8
#define SEPARATE __attribute__((noipa))
#elif defined(__GNUC__)
#define SEPARATE __attribute__((noinline, noclone))
#else
#define SEPARATE
#endif

/* How a window moves over an image of bytes, height x width x channels. Distances in memory are
 * stored ready-made: no index is multiplied at run time. */
struct window {
  int32_t height, width, out_height, out_width;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int32_t first;              /* bytes from the image to the first window; negative with padding */
  int32_t tap, tap_row;       /* from one tap to the next, from one row of taps to the next */
  int32_t step, step_row;     /* from one window to the next, from one row of windows to the next */
  uint8_t zero_point;         /* the byte that stands for zero, of which padding consists */
};

/* What becomes of a sum, with a shift that rounds down:
 *
 *   clamp((sum * multiplier + offset + residual_multiplier * residual) >> shift, low, high) */
struct requantisation {
  const int32_t *multiplier;
  const int64_t *offset;
  int32_t next;               /* 1 where each channel has its own numbers, 0 where all share them */
  int32_t shift, low, high, residual_multiplier;
};

/* The one place that changes scales, and it multiplies: once for each number, twice with a
 * residual. In place; all in 64 bits. */
SEPARATE static void requantise(const struct requantisation *how, int32_t *numbers,
                                const uint8_t *residual, int32_t count) {
  const int32_t *multiplier = how->multiplier;
  const int64_t *offset = how->offset;
  for (int32_t i = 0; i < count; ++i) {
    int64_t value = (int64_t)numbers[i] * *multiplier + *offset;
    if (residual != NULL) value += (int64_t)how->residual_multiplier * residual[i];
    /* C99 leaves the right shift of negative numbers open; their complement is not negative. */
    value = value < 0 ? ~(~value >> how->shift) : value >> how->shift;
    if (value < how->low) value = how->low;
    if (value > how->high) value = how->high;
    numbers[i] = (int32_t)value;
    multiplier += how->next;
    offset += how->next;
  }
}

/* The numbers of one pixel: sums first, then what is made of them. The logits stay here. */
static int32_t numbers[@most_channels@];

/* Writes them as bytes, if there is a place for them; returns where the next pixel goes. */
static uint8_t *store(uint8_t *y, int32_t count) {
  if (y == NULL) return NULL;
  for (int32_t i = 0; i < count; ++i) *y++ = (uint8_t)numbers[i];
  return y;
}
