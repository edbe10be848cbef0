// Vectors in the compiler's own vector extension (GCC and Clang): NEON, SSE2, VSX, RVV as the
// target has it. This file also says what the members of every vector type mean.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#define TA_VECTOR_REGISTER "+x"
#elif defined(__aarch64__) || defined(__ARM_NEON)
#define TA_VECTOR_REGISTER "+w"
#else
#define TA_VECTOR_REGISTER "+m"
#endif

namespace {

template <class Scalar, class Mask>
struct Portable {
  using T = Scalar;
  static constexpr int lanes = 16 / sizeof(T);
  typedef T Reg __attribute__((vector_size(16)));
  typedef Mask Bits __attribute__((vector_size(16)));
  static constexpr Mask sign_bit = static_cast<Mask>(Mask(1) << (8 * sizeof(T) - 1));

  static Reg load(const T* p) {
    Reg a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
  }
  static void store(T* p, Reg a) { __builtin_memcpy(p, &a, sizeof a); }
  static Reg set1(T a) { return a - Reg{}; }
  static Reg zero() { return Reg{}; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg select(Bits condition, Reg a, Reg b) {
    return (Reg)((condition & (Bits)a) | (~condition & (Bits)b));
  }
  // Unspecified when an operand is NaN; the sums of x and w show the NaN.
  static Reg max(Reg a, Reg b) { return select(a > b, a, b); }
  static Reg abs(Reg a) { return (Reg)((Bits)a & ~(Bits{} + sign_bit)); }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  // Makes the compiler forget what it knows of a register's value.
  static void hide(Reg* a) { asm volatile("" : TA_VECTOR_REGISTER(*a)); }
  // acc + a. Where a multiply-add unit is free beside the adders, as acc + a * one on that unit:
  // the rounding is the same.
  static Reg accumulate(Reg acc, Reg a, Reg) { return acc + a; }
  // a - b, on the multiply-add unit where there is one.
  static Reg sub_by_fma(Reg a, Reg b, Reg) { return a - b; }
  // clamp(d, -1, 1); clip1 may turn NaN into a number.
  static Reg clip1(Reg d, Reg one) { return select(d > one, one, select(d < -one, -one, d)); }
  static Reg clip1_keep_nan(Reg d, Reg one) { return clip1(d, one); }
  // -1, 0, 1 or NaN.
  static Reg sign(Reg d) {
    const Reg one = set1(1);
    const Reg result = select(d > zero(), one, select(d < zero(), -one, zero()));
    return select(d == d, result, d);
  }
  // Whether a >= b in every lane; false when an operand is NaN.
  static bool all_ge(Reg a, Reg b) {
    const Bits ge = a >= b;
    bool all = true;
    for (int i = 0; i < lanes; i++) all &= ge[i] != 0;
    return all;
  }
  static bool any_nan(Reg a) {
    const Bits nan = a != a;
    bool any = false;
    for (int i = 0; i < lanes; i++) any |= nan[i] != 0;
    return any;
  }

  // dst[c * dst_stride + r] = rows[r][c] for r < num_rows <= lanes, c < num_cols <= lanes.
  static void transpose(const T* const* rows, int num_rows, int num_cols, T* dst,
                        int64_t dst_stride) {
    for (int c = 0; c < num_cols; c++)
      for (int r = 0; r < num_rows; r++) dst[c * dst_stride + r] = rows[r][c];
  }
};

using PortableF32 = Portable<float, int32_t>;
using PortableF64 = Portable<double, int64_t>;

}  // namespace
