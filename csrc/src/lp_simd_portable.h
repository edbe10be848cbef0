// What a power and PKKD's kernels need beyond simd_portable.h. This file also says what the members mean.
#pragma once

#include "simd_portable.h"

namespace {

struct LpPortableF32 : PortableF32 {
  // Whether fma() rounds once.
  static constexpr bool fused = false;

  static Reg min(Reg a, Reg b) { return select(a < b, a, b); }
  // a = 2^e m for a >= 0, with m in [sqrt(1/2), sqrt(2)): returns m and, in *exponent, e * 2^23. The
  // bits of sqrt(1/2) (0x3f3504f3) subtracted from those of a leave e in the exponent's place. Zero
  // and subnormal numbers are read as 2^-127 times a number near one, infinity as 2^128.
  static Reg split(Reg a, Reg* exponent) {
    const Bits e = ((Bits)a - 0x3f3504f3) & ~0x7fffff;
    *exponent = __builtin_convertvector(e, Reg);
    return (Reg)((Bits)a - e);
  }
  // a * 2^k, given k + 1.5 * 2^23, whose lowest bits are k.
  static Reg scale(Reg a, Reg shifted) {
    return (Reg)((Unsigned)a + ((Unsigned)shifted << 23));
  }
  // a where |a| <= limit, else 0.
  static Reg within(Reg a, Reg limit) { return (Reg)((Bits)(abs(a) <= limit) & (Bits)a); }

 private:
  typedef uint32_t Unsigned __attribute__((vector_size(16)));
};

using LpPortableF64 = PortableF64;

}  // namespace
