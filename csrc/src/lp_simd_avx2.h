// What a power and PKKD's kernels need beyond simd_avx2.h. See lp_simd_portable.h for what each member means.
#pragma once

#include "simd_avx2.h"

namespace {

struct LpAvx2F32 : Avx2F32 {
  static constexpr bool fused = true;

  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg split(Reg a, Reg* exponent) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i above = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3));
    const __m256i e = _mm256_and_si256(above, _mm256_set1_epi32(-0x800000));
    *exponent = _mm256_cvtepi32_ps(e);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, e));
  }
  static Reg scale(Reg a, Reg shifted) {
    const __m256i k = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), k));
  }
  static Reg within(Reg a, Reg limit) {
    return _mm256_and_ps(_mm256_cmp_ps(abs(a), limit, _CMP_LE_OQ), a);
  }
};

using LpAvx2F64 = Avx2F64;

}  // namespace
