// AVX-512 vectors (F, DQ, VL). See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Avx512F32 {
  using T = float;
  using Reg = __m512;
  static constexpr int lanes = 16;

  static Reg load(const T* p) { return _mm512_loadu_ps(p); }
  static void store(T* p, Reg a) { _mm512_storeu_ps(p, a); }
  static Reg set1(T a) { return _mm512_set1_ps(a); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static void hide(Reg* a) { asm volatile("" : "+v"(*a)); }
  static Reg accumulate(Reg acc, Reg a, Reg one) { return _mm512_fmadd_ps(a, one, acc); }
  static Reg sub_by_fma(Reg a, Reg b, Reg one) { return _mm512_fmsub_ps(a, one, b); }
  // VRANGE with "smaller magnitude, sign of the first operand": one instruction clamps.
  static Reg clip1(Reg d, Reg one) { return _mm512_range_ps(d, one, 0x2); }
  static Reg clip1_keep_nan(Reg d, Reg one) {
    return _mm512_max_ps(_mm512_sub_ps(zero(), one), _mm512_min_ps(one, d));
  }
  // VFIXUPIMM answers by class of the input, a nibble each from the low end: QNaN -> QNaN,
  // SNaN -> QNaN, 0 -> +0, +1 -> +1, -inf -> -1, +inf -> +1, negative -> -1, positive -> +1.
  static Reg sign(Reg d) {
    return _mm512_fixupimm_ps(d, d, _mm512_set1_epi32(static_cast<int>(0xA9A9A822u)), 0);
  }
  static bool all_ge(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) == 0xFFFF; }
  static bool any_nan(Reg a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }

  // dst[c * dst_stride + r] = rows[r][c] for r < num_rows <= 16, c < num_cols <= 16.
  static void transpose(const T* const* rows, int num_rows, int num_cols, T* dst,
                        int64_t dst_stride) {
    const __mmask16 in = static_cast<__mmask16>((1u << num_cols) - 1u);
    const __mmask16 out = static_cast<__mmask16>((1u << num_rows) - 1u);
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++)
      a[i] = i < num_rows ? _mm512_maskz_loadu_ps(in, rows[i]) : _mm512_setzero_ps();
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_castpd_ps(
          _mm512_unpacklo_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
      a[i + 1] = _mm512_castpd_ps(
          _mm512_unpackhi_pd(_mm512_castps_pd(b[i]), _mm512_castps_pd(b[i + 2])));
      a[i + 2] = _mm512_castpd_ps(
          _mm512_unpacklo_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
      a[i + 3] = _mm512_castpd_ps(
          _mm512_unpackhi_pd(_mm512_castps_pd(b[i + 1]), _mm512_castps_pd(b[i + 3])));
    }
    for (int i = 0; i < 4; i++) {
      b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD);
      b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
      b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
      a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
      a[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xDD);
      a[i + 4] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88);
      a[i + 12] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xDD);
    }
    for (int c = 0; c < num_cols; c++) _mm512_mask_storeu_ps(dst + c * dst_stride, out, a[c]);
  }
};

struct Avx512F64 {
  using T = double;
  using Reg = __m512d;
  static constexpr int lanes = 8;

  static Reg load(const T* p) { return _mm512_loadu_pd(p); }
  static void store(T* p, Reg a) { _mm512_storeu_pd(p, a); }
  static Reg set1(T a) { return _mm512_set1_pd(a); }
  static Reg zero() { return _mm512_setzero_pd(); }
  static Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_pd(a); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static void hide(Reg* a) { asm volatile("" : "+v"(*a)); }
  static Reg accumulate(Reg acc, Reg a, Reg one) { return _mm512_fmadd_pd(a, one, acc); }
  static Reg sub_by_fma(Reg a, Reg b, Reg one) { return _mm512_fmsub_pd(a, one, b); }
  static Reg clip1(Reg d, Reg one) { return _mm512_range_pd(d, one, 0x2); }
  static Reg clip1_keep_nan(Reg d, Reg one) {
    return _mm512_max_pd(_mm512_sub_pd(zero(), one), _mm512_min_pd(one, d));
  }
  static Reg sign(Reg d) {
    return _mm512_fixupimm_pd(d, d, _mm512_set1_epi64(0xA9A9A822ll), 0);
  }
  static bool all_ge(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ) == 0xFF; }
  static bool any_nan(Reg a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q) != 0; }

  static void transpose(const T* const* rows, int num_rows, int num_cols, T* dst,
                        int64_t dst_stride) {
    for (int c = 0; c < num_cols; c++)
      for (int r = 0; r < num_rows; r++) dst[c * dst_stride + r] = rows[r][c];
  }
};

}  // namespace
