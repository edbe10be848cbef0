// AVX-512 BW: one instruction takes eight absolute differences and their sum for eight filters.
// See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "int8/narrow_avx512.h"

namespace {

struct AdderAvx512 {
  static constexpr int kPixels = 6, kBlocks = 4, kSign = -1;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Narrow = NarrowAvx512;
  using Pixel = __m512i;
  using Filters = __m512i;
  using Sums = __m512i;

  static Pixel broadcast(uint64_t bytes) { return _mm512_set1_epi64(static_cast<int64_t>(bytes)); }
  static Filters load(const uint8_t* w) { return _mm512_loadu_si512(w); }
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums add(Sums sums, Pixel x, Filters w) {
    return _mm512_add_epi64(sums, _mm512_sad_epu8(x, w));
  }
  static Pixel keep(Pixel x, Pixel mask) { return _mm512_and_si512(x, mask); }
  static void store(int32_t* total, Sums sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(total), _mm512_cvtepi64_epi32(sums));
  }
};

}  // namespace
