/* Puts the channels of x at `places` among those of y. */
SEPARATE static void spread(int32_t pixels, int32_t channels, int32_t out_channels,
                            const uint16_t *places, const uint8_t *x, uint8_t *y) {
  for (int32_t i = pixels; i > 0; --i) {
    for (int32_t c = 0; c < channels; ++c) y[places[c]] = *x++;
    y += out_channels;
  }
}
