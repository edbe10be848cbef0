// AVX-512 VNNI: one instruction takes four products and their sum for sixteen halves of filters.
// See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "int8/narrow_avx512.h"

namespace {

struct ConvolutionAvx512 {
  static constexpr int kPixels = 6, kBlocks = 4, kSign = 1;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Narrow = NarrowAvx512;
  using Pixel = __m512i;
  using Filters = __m512i;
  using Sums = __m512i;

  static Pixel broadcast(uint64_t bytes) { return _mm512_set1_epi64(static_cast<int64_t>(bytes)); }
  static Filters load(const uint8_t* w) { return _mm512_loadu_si512(w); }
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums add(Sums sums, Pixel x, Filters w) { return _mm512_dpbusd_epi32(sums, x, w); }
  static void store(int32_t* total, Sums sums) {
    const __m512i both = _mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(total), _mm512_cvtepi64_epi32(both));
  }
};

}  // namespace
