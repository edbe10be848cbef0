// The inner loops: sums over a block of runs for a few pixels and a few vectors of result channels.
//
// stage[m][v] += sum over rows of term(source value of pixel m, weight vector v of the row)
//
// kMax      max(w, x): with sum |x - w| = 2 sum max(x, w) - sum x - sum w this is a maximum and an
//           addition a pair. The addition runs as a multiply-add with one: the same rounding, but on
//           the multiply-add units, which maxima do not use where the two are separate.
// kAbs      |w - x|, directly.
// kClip...  factor(w - x) * g for the input gradient; x is fixed per pixel, g is the source.
#pragma once

#include "pack.h"

namespace {

using torchadder::Block;
using torchadder::Run;

enum class Term { kMax, kAbs, kClip, kClipKeepNan, kSign, kL2 };

constexpr bool is_gradient(Term term) { return term != Term::kMax && term != Term::kAbs; }

template <class T>
struct Tile {
  const T* const* source;  // base of each pixel in the slab
  const T* const* x;       // gradient only: x of each pixel, one vector
  T* const* stage;         // where each pixel's sums stand
};

// Ones that the compiler takes for any number: it must not turn a multiply-add into an addition.
template <class V>
typename V::Reg hidden_one() {
  typename V::Reg one = V::set1(1);
  V::hide(&one);
  return one;
}

template <class V, Term kTerm, int kPixels, int kVectors, bool kLanewise>
void accumulate(const Tile<typename V::T>& tile, const Run* runs, int64_t num_runs,
                const typename V::T* w) {
  using T = typename V::T;
  using Reg = typename V::Reg;
  constexpr int64_t step = kLanewise ? V::lanes : 1;
  static_assert(!(is_gradient(kTerm) || kLanewise) || kVectors == 1, "one vector a pixel");
  const Reg one = hidden_one<V>();
  Reg sum[kPixels][kVectors];
  Reg x[kPixels];
  for (int m = 0; m < kPixels; m++) {
    for (int v = 0; v < kVectors; v++) sum[m][v] = V::zero();
    x[m] = is_gradient(kTerm) ? V::load(tile.x[m]) : V::zero();
  }
  for (int64_t i = 0; i < num_runs; i++) {
    const T* source[kPixels];
    for (int m = 0; m < kPixels; m++) source[m] = tile.source[m] + runs[i].offset;
    const int64_t length = runs[i].rows * step;
    for (int64_t k = 0; k < length; k += step) {
      Reg wv[kVectors];
      for (int v = 0; v < kVectors; v++) wv[v] = V::load(w + v * V::lanes);
      w += kVectors * V::lanes;
      for (int m = 0; m < kPixels; m++) {
        const Reg s = kLanewise ? V::load(source[m] + k) : V::set1(source[m][k]);
        for (int v = 0; v < kVectors; v++) {
          if constexpr (kTerm == Term::kMax) {
            sum[m][v] = V::accumulate(sum[m][v], V::max(wv[v], s), one);
          } else if constexpr (kTerm == Term::kAbs) {
            sum[m][v] = V::accumulate(sum[m][v], V::abs(V::sub(wv[v], s)), one);
          } else {
            // Every other difference on the multiply-add unit evens the load of the two kinds.
            const Reg d = kTerm == Term::kClip && m % 2 ? V::sub_by_fma(wv[v], x[m], one)
                                                        : V::sub(wv[v], x[m]);
            Reg factor = d;
            if constexpr (kTerm == Term::kClip) factor = V::clip1(d, one);
            if constexpr (kTerm == Term::kClipKeepNan) factor = V::clip1_keep_nan(d, one);
            if constexpr (kTerm == Term::kSign) factor = V::sign(d);
            sum[m][v] = V::fma(factor, s, sum[m][v]);
          }
        }
      }
    }
  }
  for (int m = 0; m < kPixels; m++)
    for (int v = 0; v < kVectors; v++) {
      T* at = tile.stage[m] + v * V::lanes;
      V::store(at, V::add(V::load(at), sum[m][v]));
    }
}

// Pixels a call of accumulate() takes at most: as many as the registers hold.
template <class V>
constexpr int tile_pixels(int vectors) {
  return vectors >= 4 ? (V::lanes * sizeof(typename V::T) == 64 ? 6 : 3)
                      : (V::lanes * sizeof(typename V::T) == 64 ? 8 : 4);
}

// Runs accumulate() over `count` <= tile_pixels pixels, in the sizes it is compiled for.
template <class V, Term kTerm, int kVectors, bool kLanewise>
void accumulate_tile(const Tile<typename V::T>& tile, int count, const Run* runs, int64_t num_runs,
                     const typename V::T* w) {
  constexpr int kMost = tile_pixels<V>(kVectors);
  if (count == kMost) {
    accumulate<V, kTerm, kMost, kVectors, kLanewise>(tile, runs, num_runs, w);
    return;
  }
  Tile<typename V::T> rest = tile;
  while (count > 0) {
    int done = 1;
    if (count >= 4 && kMost > 4) {
      accumulate<V, kTerm, 4, kVectors, kLanewise>(rest, runs, num_runs, w);
      done = 4;
    } else if (count >= 2) {
      accumulate<V, kTerm, 2, kVectors, kLanewise>(rest, runs, num_runs, w);
      done = 2;
    } else {
      accumulate<V, kTerm, 1, kVectors, kLanewise>(rest, runs, num_runs, w);
    }
    count -= done;
    rest.source += done;
    rest.stage += done;
    if (is_gradient(kTerm)) rest.x += done;
  }
}

}  // namespace
