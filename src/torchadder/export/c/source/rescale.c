/* Pixel by pixel: another scale for x, with a residual (which may be null) added. y may be x or the
 * residual; it is null for the logits. */
SEPARATE static void rescale(const struct requantisation *how, int32_t pixels, int32_t channels,
                             const uint8_t *x, const uint8_t *residual, uint8_t *y) {
  for (int32_t i = pixels; i > 0; --i) {
    for (int32_t c = 0; c < channels; ++c) numbers[c] = *x++;
    requantise(how, numbers, residual, channels);
    if (residual != NULL) residual += channels;
    y = store(y, channels);
  }
}
