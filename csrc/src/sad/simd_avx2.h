// AVX2: one instruction takes eight absolute differences and their sum for four filters.
// See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct SadAvx2 {
  static constexpr int kPixels = 3, kBlocks = 2;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Pixel = __m256i;
  struct Filters {
    __m256i low, high;
  };
  struct Sums {
    __m256i low, high;
  };

  static Pixel broadcast(uint64_t bytes) {
    return _mm256_set1_epi64x(static_cast<long long>(bytes));
  }
  static Filters load(const uint8_t* w) {
    const __m256i* from = reinterpret_cast<const __m256i*>(w);
    return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
  }
  static Sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Sums add(Sums sums, Pixel x, Filters w) {
    return {_mm256_add_epi64(sums.low, _mm256_sad_epu8(x, w.low)),
            _mm256_add_epi64(sums.high, _mm256_sad_epu8(x, w.high))};
  }
  static void accumulate(Sums sums, int32_t* total) {
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    const __m256i low = _mm256_permutevar8x32_epi32(sums.low, even);
    const __m256i high = _mm256_permutevar8x32_epi32(sums.high, even);
    __m256i* to = reinterpret_cast<__m256i*>(total);
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to),
                                             _mm256_blend_epi32(low, high, 0xF0)));
  }
};

}  // namespace
