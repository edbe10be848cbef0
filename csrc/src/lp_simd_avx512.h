// What a power and PKKD's kernels need beyond simd_avx512.h. See lp_simd_portable.h for what each member means.
#pragma once

#include "simd_avx512.h"

namespace {

struct LpAvx512F32 : Avx512F32 {
  static constexpr bool fused = true;

  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg split(Reg a, Reg* exponent) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i above = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3));
    const __m512i e = _mm512_and_si512(above, _mm512_set1_epi32(-0x800000));
    *exponent = _mm512_cvtepi32_ps(e);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, e));
  }
  static Reg scale(Reg a, Reg shifted) {
    const __m512i k = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), k));
  }
  static Reg within(Reg a, Reg limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(abs(a), limit, _CMP_LE_OQ), a);
  }
};

using LpAvx512F64 = Avx512F64;

}  // namespace
