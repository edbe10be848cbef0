/* Goes over the windows of an image. A tap outside the image is left out of a maximum, and is the
 * zero point in a sum; `how` is null for maxima. */
SEPARATE static void pool(const struct window *w, const struct requantisation *how,
                          int32_t channels, const uint8_t *x, uint8_t *y) {
  int32_t row = -w->pad_h, row_offset = w->first;
  for (int32_t p = w->out_height; p > 0; --p) {
    int32_t column = -w->pad_w, offset = row_offset;
    for (int32_t q = w->out_width; q > 0; --q) {
      int32_t there = row, tap_offset = offset;
      for (int32_t c = 0; c < channels; ++c) numbers[c] = 0;
      for (int32_t r = w->kernel_h; r > 0; --r) {
        int32_t here = column, at = tap_offset;
        for (int32_t s = w->kernel_w; s > 0; --s) {
          const int is_inside = there >= 0 && there < w->height && here >= 0 && here < w->width;
          for (int32_t c = 0; c < channels; ++c) {
            const int32_t value = is_inside ? x[at + c] : w->zero_point;
            if (how != NULL) numbers[c] += value;
            else if (is_inside && numbers[c] < value) numbers[c] = value;
          }
          here += w->dilation_w;
          at += w->tap;
        }
        there += w->dilation_h;
        tap_offset += w->tap_row;
      }
      if (how != NULL) requantise(how, numbers, NULL, channels);
      y = store(y, channels);
      column += w->stride_w;
      offset += w->step;
    }
    row += w->stride_h;
    row_offset += w->step_row;
  }
}
