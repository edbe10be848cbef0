/* sums[o] = sum_k patch[k] * filters[o][k]: the layers that stayed convolutions. */
SEPARATE static void sum_products(const uint8_t *patch_bytes, const void *filters, int32_t taps,
                                  int32_t count, int32_t *sums) {
  const int8_t *filter = filters;
  for (int32_t o = count; o > 0; --o) {
    int32_t sum = 0;
    for (int32_t k = 0; k < taps; ++k) sum += patch_bytes[k] * filter[k];
    *sums++ = sum;
    filter += taps;
  }
}
