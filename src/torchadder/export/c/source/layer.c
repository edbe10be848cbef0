struct layer {
  struct window window;
  /* sums[o] for `count` filters of `taps` bytes each */
  void (*sum)(const uint8_t *patch, const void *filters, int32_t taps, int32_t count,
              int32_t *sums);
  const void *filters;        /* in the order (filter, row, column, channel) */
  int32_t groups, depth;      /* groups of channels, channels of a group */
  int32_t taps, count;        /* bytes of a filter, filters of a group */
  int32_t group_bytes;        /* of the filters of a group */
  int32_t channels;           /* of the result */
  struct requantisation result;
};

/* The bytes under one window, in the order of the filters. */
static uint8_t patch[@most_taps@];

/* Copies them: `row` and `column` are where the window begins in the image, `offset` is where that
 * is in memory; both may lie outside. */
SEPARATE static void gather(const struct window *w, const uint8_t *x, int32_t row, int32_t column,
                            int32_t offset, int32_t depth) {
  uint8_t *to = patch;
  for (int32_t r = w->kernel_h; r > 0; --r) {
    int32_t here = column, at = offset;
    for (int32_t s = w->kernel_w; s > 0; --s) {
      if (row >= 0 && row < w->height && here >= 0 && here < w->width) {
        const uint8_t *from = x + at;
        for (int32_t c = depth; c > 0; --c) *to++ = *from++;
      } else {
        for (int32_t c = depth; c > 0; --c) *to++ = w->zero_point;
      }
      here += w->dilation_w;
      at += w->tap;
    }
    row += w->dilation_h;
    offset += w->tap_row;
  }
}

/* An adder layer or a convolution, whichever l->sum is. `residual` may be null; y is null for the
 * logits. Multiplies nothing itself. */
SEPARATE static void run_layer(const struct layer *l, const uint8_t *x, const uint8_t *residual,
                               uint8_t *y) {
  const struct window *w = &l->window;
  int32_t row = -w->pad_h, row_offset = w->first;
  for (int32_t p = w->out_height; p > 0; --p) {
    int32_t column = -w->pad_w, offset = row_offset;
    for (int32_t q = w->out_width; q > 0; --q) {
      const uint8_t *filters = l->filters;
      int32_t *sums = numbers;
      int32_t at = offset;
      for (int32_t g = l->groups; g > 0; --g) {
        gather(w, x, row, column, at, l->depth);
        l->sum(patch, filters, l->taps, l->count, sums);
        filters += l->group_bytes;
        sums += l->count;
        at += l->depth;
      }
      requantise(&l->result, numbers, residual, l->channels);
      if (residual != NULL) residual += l->channels;
      y = store(y, l->channels);
      column += w->stride_w;
      offset += w->step;
    }
    row += w->stride_h;
    row_offset += w->step_row;
  }
}
