/* sums[o] = -sum_k |patch[k] - filters[o][k]|: subtractions and additions, no multiplication. */
SEPARATE static void sum_differences(const uint8_t *patch_bytes, const void *filters, int32_t taps,
                                     int32_t count, int32_t *sums) {
  const uint8_t *filter = filters;
  for (int32_t o = count; o > 0; --o) {
    int32_t sum = 0;
    for (int32_t k = 0; k < taps; ++k) {
      const int32_t difference = patch_bytes[k] - filter[k];
      sum += difference < 0 ? -difference : difference;
    }
    *sums++ = -sum;
    filter += taps;
  }
}
