// AVX2 + FMA vectors. See simd_portable.h for what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Avx2F32 {
  using T = float;
  using Reg = __m256;
  static constexpr int lanes = 8;

  static Reg load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, Reg a) { _mm256_storeu_ps(p, a); }
  static Reg set1(T a) { return _mm256_set1_ps(a); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static void hide(Reg* a) { asm volatile("" : "+x"(*a)); }
  static Reg accumulate(Reg acc, Reg a, Reg one) { return _mm256_fmadd_ps(a, one, acc); }
  static Reg sub_by_fma(Reg a, Reg b, Reg one) { return _mm256_fmsub_ps(a, one, b); }
  // MINPS and MAXPS return the second operand when either is NaN: NaN passes through.
  static Reg clip1(Reg d, Reg one) {
    return _mm256_max_ps(_mm256_sub_ps(zero(), one), _mm256_min_ps(one, d));
  }
  static Reg clip1_keep_nan(Reg d, Reg one) { return clip1(d, one); }
  static Reg sign(Reg d) {
    const Reg one_with_sign = _mm256_or_ps(_mm256_and_ps(d, _mm256_set1_ps(-0.0f)),
                                           _mm256_set1_ps(1.0f));
    const Reg nonzero = _mm256_cmp_ps(d, zero(), _CMP_NEQ_UQ);
    const Reg nan = _mm256_cmp_ps(d, d, _CMP_UNORD_Q);
    return _mm256_or_ps(_mm256_and_ps(one_with_sign, nonzero), nan);
  }
  static bool all_ge(Reg a, Reg b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) == 0xFF;
  }
  static bool any_nan(Reg a) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0;
  }

  // dst[c * dst_stride + r] = rows[r][c] for r < num_rows <= 8, c < num_cols <= 8.
  static void transpose(const T* const* rows, int num_rows, int num_cols, T* dst,
                        int64_t dst_stride) {
    if (num_rows < 8 || num_cols < 8) {
      for (int c = 0; c < num_cols; c++)
        for (int r = 0; r < num_rows; r++) dst[c * dst_stride + r] = rows[r][c];
      return;
    }
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(rows[i]);
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
      _mm256_storeu_ps(dst + i * dst_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
      _mm256_storeu_ps(dst + (i + 4) * dst_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
  }
};

struct Avx2F64 {
  using T = double;
  using Reg = __m256d;
  static constexpr int lanes = 4;

  static Reg load(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, Reg a) { _mm256_storeu_pd(p, a); }
  static Reg set1(T a) { return _mm256_set1_pd(a); }
  static Reg zero() { return _mm256_setzero_pd(); }
  static Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  static Reg abs(Reg a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static void hide(Reg* a) { asm volatile("" : "+x"(*a)); }
  static Reg accumulate(Reg acc, Reg a, Reg one) { return _mm256_fmadd_pd(a, one, acc); }
  static Reg sub_by_fma(Reg a, Reg b, Reg one) { return _mm256_fmsub_pd(a, one, b); }
  static Reg clip1(Reg d, Reg one) {
    return _mm256_max_pd(_mm256_sub_pd(zero(), one), _mm256_min_pd(one, d));
  }
  static Reg clip1_keep_nan(Reg d, Reg one) { return clip1(d, one); }
  static Reg sign(Reg d) {
    const Reg one_with_sign =
        _mm256_or_pd(_mm256_and_pd(d, _mm256_set1_pd(-0.0)), _mm256_set1_pd(1.0));
    const Reg nonzero = _mm256_cmp_pd(d, zero(), _CMP_NEQ_UQ);
    const Reg nan = _mm256_cmp_pd(d, d, _CMP_UNORD_Q);
    return _mm256_or_pd(_mm256_and_pd(one_with_sign, nonzero), nan);
  }
  static bool all_ge(Reg a, Reg b) {
    return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)) == 0xF;
  }
  static bool any_nan(Reg a) {
    return _mm256_movemask_pd(_mm256_cmp_pd(a, a, _CMP_UNORD_Q)) != 0;
  }

  static void transpose(const T* const* rows, int num_rows, int num_cols, T* dst,
                        int64_t dst_stride) {
    for (int c = 0; c < num_cols; c++)
      for (int r = 0; r < num_rows; r++) dst[c * dst_stride + r] = rows[r][c];
  }
};

}  // namespace
