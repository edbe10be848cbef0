// See narrow_portable.h. Eight sums are twice four 64-bit lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "torchadder_int8.h"

namespace {

class NarrowAvx2 {
 public:
  explicit NarrowAvx2(const ta_requantisation& how)
      : multiplier_(how.multiplier),
        offset_(how.offset),
        factor_(_mm256_set1_epi64x(how.residual_multiplier)),
        low_(_mm256_set1_epi64x(how.low)),
        high_(_mm256_set1_epi64x(how.high)),
        shift_(_mm_cvtsi32_si128(how.shift)) {}

  template <int kSign>
  void eight(const int32_t* total, int64_t channel, const uint8_t* residual, uint8_t* to) const {
    const __m256i low = four<kSign>(total, channel, residual);
    const __m256i high = four<kSign>(total + 4, channel + 4, residual ? residual + 4 : nullptr);
    // The lowest bytes of the lanes, filters 0 1 4 5 | 2 3 6 7, then in order.
    const __m256i pairs = _mm256_castps_si256(_mm256_shuffle_ps(
        _mm256_castsi256_ps(low), _mm256_castsi256_ps(high), _MM_SHUFFLE(2, 0, 2, 0)));
    const __m128i shorts =
        _mm_packus_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128i bytes = _mm_packus_epi16(shorts, shorts);
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(bytes, order));
  }

 private:
  template <int kSign>
  __m256i four(const int32_t* total, int64_t channel, const uint8_t* residual) const {
    const __m256i product = _mm256_mul_epi32(widen(total), widen(multiplier_ + channel));
    const __m256i offset =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset_ + channel));
    __m256i value =
        kSign < 0 ? _mm256_sub_epi64(offset, product) : _mm256_add_epi64(offset, product);
    if (residual != nullptr) {
      int32_t bytes;
      std::memcpy(&bytes, residual, sizeof bytes);
      value = _mm256_add_epi64(
          value, _mm256_mul_epi32(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes)), factor_));
    }
    // There is no shift of signed lanes; as low >= 0, values below zero may become zero before.
    value = _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_setzero_si256(), value), value);
    value = _mm256_srl_epi64(value, shift_);
    value = _mm256_blendv_epi8(value, low_, _mm256_cmpgt_epi64(low_, value));
    return _mm256_blendv_epi8(value, high_, _mm256_cmpgt_epi64(value, high_));
  }

  static __m256i widen(const int32_t* from) {
    return _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  const int32_t* multiplier_;
  const int64_t* offset_;
  __m256i factor_, low_, high_;
  __m128i shift_;
};

}  // namespace
