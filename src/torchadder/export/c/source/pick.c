/* Takes channels of x, some of them or all in another order: y[c] = x[sources[c]]. */
SEPARATE static void pick(int32_t pixels, int32_t channels, int32_t out_channels,
                          const uint16_t *sources, const uint8_t *x, uint8_t *y) {
  for (int32_t i = pixels; i > 0; --i) {
    for (int32_t c = 0; c < out_channels; ++c) *y++ = x[sources[c]];
    x += channels;
  }
}
