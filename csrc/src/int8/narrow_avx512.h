// See narrow_portable.h. Eight sums are eight 64-bit lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "torchadder_int8.h"

namespace {

class NarrowAvx512 {
 public:
  explicit NarrowAvx512(const ta_requantisation& how)
      : multiplier_(how.multiplier),
        offset_(how.offset),
        factor_(_mm512_set1_epi64(how.residual_multiplier)),
        low_(_mm512_set1_epi64(how.low)),
        high_(_mm512_set1_epi64(how.high)),
        shift_(_mm_cvtsi32_si128(how.shift)) {}

  template <int kSign>
  void eight(const int32_t* total, int64_t channel, const uint8_t* residual, uint8_t* to) const {
    const __m512i sums = widen(total), multiplier = widen(multiplier_ + channel);
    const __m512i offset = _mm512_loadu_si512(offset_ + channel);
    const __m512i product = _mm512_mul_epi32(sums, multiplier);
    __m512i value =
        kSign < 0 ? _mm512_sub_epi64(offset, product) : _mm512_add_epi64(offset, product);
    if (residual != nullptr) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(residual));
      value = _mm512_add_epi64(value, _mm512_mul_epi32(_mm512_cvtepu8_epi64(bytes), factor_));
    }
    value = _mm512_sra_epi64(value, shift_);
    value = _mm512_min_epi64(_mm512_max_epi64(value, low_), high_);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm512_cvtepi64_epi8(value));
  }

 private:
  static __m512i widen(const int32_t* from) {
    return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  const int32_t* multiplier_;
  const int64_t* offset_;
  __m512i factor_, low_, high_;
  __m128i shift_;
};

}  // namespace
