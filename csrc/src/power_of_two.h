// 2^x in float32, for vectors of simd_*.h with the members of lp_simd_*.h.
#pragma once

namespace {

// 2^z = kExp[0] + kExp[1] z + ..., |relative error| < 2^-26 for z in [-1, 1].
constexpr float kExp[] = {0.999999992f,   0.693147222f,   0.240226802f,   0.0555037876f,
                          0.00961656545f, 0.00133393241f, 0.00015662799f, 1.50504201e-05f};

// Added to a number below 2^22 in size, it leaves the nearest integer in the lowest bits.
constexpr float kRounding = 0x1.8p23f;

// 2^(z + k) for z in [-1, 1] and |k| <= 120, given k + kRounding. May turn NaN into a number.
template <class V>
typename V::Reg power_of_two(typename V::Reg z, typename V::Reg shifted) {
  typename V::Reg power = V::set1(kExp[7]);
  for (int i = 6; i >= 0; i--) power = V::fma(power, z, V::set1(kExp[i]));
  return V::scale(power, shifted);
}

}  // namespace
