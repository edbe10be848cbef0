// AVX2: one instruction takes eight absolute differences and their sum for four filters.
// See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "int8/narrow_avx2.h"

namespace {

struct AdderAvx2 {
  static constexpr int kPixels = 3, kBlocks = 2, kSign = -1;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Narrow = NarrowAvx2;
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
  static Pixel keep(Pixel x, Pixel mask) { return _mm256_and_si256(x, mask); }
  static void store(int32_t* total, Sums sums) {
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    const __m256i low = _mm256_permutevar8x32_epi32(sums.low, even);
    const __m256i high = _mm256_permutevar8x32_epi32(sums.high, even);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(total), _mm256_blend_epi32(low, high, 0xF0));
  }
};

// Products of unsigned pixels and signed filters, widened to 16 bits: two of them fit 32 bits.
struct ConvolutionAvx2 {
  static constexpr int kPixels = 2, kBlocks = 1, kSign = 1;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Narrow = NarrowAvx2;
  using Pixel = __m256i;
  struct Filters {
    __m256i pair[4];
  };
  struct Sums {
    __m256i pair[4];
  };

  static Pixel broadcast(uint64_t bytes) {
    return _mm256_broadcastsi128_si256(
        _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(bytes))));
  }
  static Filters load(const uint8_t* w) {
    Filters filters;
    for (int i = 0; i < 4; i++)
      filters.pair[i] =
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + i));
    return filters;
  }
  static Sums zero() {
    const __m256i none = _mm256_setzero_si256();
    return {{none, none, none, none}};
  }
  static Sums add(Sums sums, Pixel x, Filters w) {
    for (int i = 0; i < 4; i++)
      sums.pair[i] = _mm256_add_epi32(sums.pair[i], _mm256_madd_epi16(x, w.pair[i]));
    return sums;
  }
  static void store(int32_t* total, Sums sums) {
    // Lanes of the result: filters 0 2 4 6 | 1 3 5 7.
    const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(sums.pair[0], sums.pair[1]),
                                          _mm256_hadd_epi32(sums.pair[2], sums.pair[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(total),
                        _mm256_permutevar8x32_epi32(all, order));
  }
};

}  // namespace
