/* Channels outermost: y[c][pixel] = x[pixel][c]. */
SEPARATE static void flatten(int32_t pixels, int32_t channels, const uint8_t *x, uint8_t *y) {
  for (int32_t i = 0; i < pixels; ++i) {
    uint8_t *to = y + i;
    for (int32_t c = channels; c > 0; --c) {
      *to = *x++;
      if (c > 1) to += pixels;
    }
  }
}
