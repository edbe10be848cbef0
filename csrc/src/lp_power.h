// |d|^p and its derivative sign(d) |d|^(p-1) (without the factor p) for a vector of differences,
// 1 < p < 2.
//
// In float32 |d|^p = |d| 2^(r log2 |d|) with r = p - 1, and sign(d) |d|^(p-1) = d 2^(r log2 |d|) with
// r = p - 2: the factor |d| or d makes the result right at 0, at infinity and for NaN, whatever the
// power of two is there. Derivation and error bound: csrc/README.md, "Powers". In float64 the C
// library's pow serves, lane by lane.
#pragma once

#include <cmath>
#include <cstdint>

#include "power_of_two.h"

namespace {

// log2(1 + u) = u (kLog[0] + kLog[1] u + ...), |error| < 2^-24.3 for 1 + u in [sqrt(1/2), sqrt(2)].
constexpr float kLog[] = {1.44269477f,  -0.721357149f, 0.480939445f, -0.360087215f,
                          0.286707446f, -0.250069048f, 0.236890451f, -0.145744541f};

template <class V>
typename V::Reg product(typename V::Reg a, typename V::Reg b) {
  return V::fma(a, b, V::zero());
}

template <class V, class T = typename V::T>
class Power;

template <class V>
class Power<V, float> {
  using Reg = typename V::Reg;

 public:
  explicit Power(double p) : rise_(static_cast<float>(p) - 1), fall_(static_cast<float>(p) - 2) {}

  // sum + |d|^p.
  Reg add_power(Reg sum, Reg d) const {
    const Reg size = V::abs(d);
    return V::fma(size, exp2_log2(size, rise_), sum);
  }
  // sign(d) |d|^(p-1).
  Reg derivative(Reg d) const {
    // The power of two would leave its range beyond 2^126; d itself carries what is larger.
    const Reg size = V::min(V::abs(d), V::set1(0x1p126f));
    return product<V>(d, exp2_log2(size, fall_));
  }

 private:
  // An exponent r, ready to be multiplied with e * 2^23 and with log2(m).
  struct Exponent {
    explicit Exponent(float r) {
      // 16 significant bits: times any e (8 bits) that is exact.
      uint32_t bits;
      __builtin_memcpy(&bits, &r, sizeof bits);
      bits &= 0xffffff00u;
      __builtin_memcpy(&high, &bits, sizeof high);
      low = (r - high) * 0x1p-23f;
      high *= 0x1p-23f;
      whole = r * 0x1p-23f;
      for (int i = 0; i < 8; i++) log[i] = r * kLog[i];
    }
    float whole, high, low;
    float log[8];
  };

  // size^r = 2^k 2^z with k = round(r e), z = (r e - k) + r log2(m).
  static Reg exp2_log2(Reg size, const Exponent& r) {
    Reg e;
    const Reg u = V::sub(V::split(size, &e), V::set1(1));
    Reg q = V::set1(r.log[7]);
    for (int i = 6; i >= 0; i--) q = V::fma(q, u, V::set1(r.log[i]));
    const Reg magic = V::set1(kRounding);
    Reg shifted, rest;
    if constexpr (V::fused) {
      shifted = V::fma(e, V::set1(r.whole), magic);
      rest = V::fma(e, V::set1(r.whole), V::sub(magic, shifted));
    } else {
      const Reg high = product<V>(e, V::set1(r.high));
      shifted = V::add(high, magic);
      rest = V::fma(e, V::set1(r.low), V::sub(high, V::sub(shifted, magic)));
    }
    const Reg z = V::fma(q, u, rest);
    return power_of_two<V>(z, shifted);
  }

  const Exponent rise_, fall_;
};

template <class V>
class Power<V, double> {
  using Reg = typename V::Reg;

 public:
  explicit Power(double p) : p_(p) {}

  Reg add_power(Reg sum, Reg d) const {
    return V::add(sum, each(V::abs(d), [this](double size) { return std::pow(size, p_); }));
  }
  Reg derivative(Reg d) const {
    return each(d, [this](double value) {
      return value == 0 ? 0 : std::copysign(std::pow(std::fabs(value), p_ - 1), value);
    });
  }

 private:
  template <class Function>
  static Reg each(Reg a, Function function) {
    double lanes[V::lanes];
    V::store(lanes, a);
    for (double& lane : lanes) lane = function(lane);
    return V::load(lanes);
  }

  const double p_;
};

}  // namespace
