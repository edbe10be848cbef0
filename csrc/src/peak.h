// What one thread's arithmetic units do in registers: the limits that the benchmark quotes.
#pragma once

#include <chrono>

#include "accumulate.h"

namespace {

template <class V, class Step>
double pairs_per_second(double seconds, Step step) {
  using Clock = std::chrono::steady_clock;
  constexpr int kChains = 16, kInner = 256;
  typename V::Reg sum[kChains];
  for (int i = 0; i < kChains; i++) sum[i] = V::zero();
  double pairs = 0, elapsed = 0;
  const auto start = Clock::now();
  while (elapsed < seconds) {
    for (int k = 0; k < kInner; k++)
      for (int i = 0; i < kChains; i++) sum[i] = step(sum[i]);
    pairs += double(kInner) * kChains * V::lanes;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  typename V::T sink[V::lanes];
  for (int i = 1; i < kChains; i++) sum[0] = V::add(sum[0], sum[i]);
  V::store(sink, sum[0]);
  volatile typename V::T keep = sink[0];
  (void)keep;
  return pairs / elapsed;
}

// A maximum and an addition a pair, the addition on whichever unit V::accumulate takes.
template <class V>
double peak_max_add(double seconds) {
  const typename V::Reg one = hidden_one<V>();
  typename V::Reg a = one, b = one;
  return pairs_per_second<V>(seconds, [=](typename V::Reg sum) mutable {
    V::hide(&a);
    return V::accumulate(sum, V::max(a, b), one);
  });
}

template <class V>
double peak_multiply_add(double seconds) {
  const typename V::Reg a = hidden_one<V>(), b = hidden_one<V>();
  return pairs_per_second<V>(seconds,
                             [=](typename V::Reg sum) { return V::fma(a, b, sum); });
}

}  // namespace
