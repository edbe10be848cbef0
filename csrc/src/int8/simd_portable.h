// Bytes in the compiler's own vector extension (GCC and Clang): NEON has uabd and uaddw for these
// lines. This file also says what the members of every vector type mean.
#pragma once

#include <cstdint>
#include <cstring>

#include "int8/narrow_portable.h"

namespace {

struct AdderPortable {
  // A tile: pixels, and blocks of eight filters, whose sums are held in registers.
  static constexpr int kPixels = 2, kBlocks = 1;
  // Sign of the result against the sums: -1 for distances.
  static constexpr int kSign = -1;
  // Steps after which sums have to be added to their totals: 257 differences fit 16 bits.
  static constexpr int64_t kMaxSteps = 257;

  // What makes bytes of sums.
  using Narrow = NarrowPortable;

  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint8_t Half __attribute__((vector_size(8)));
  typedef uint16_t Words __attribute__((vector_size(16)));

  // Eight bytes of one pixel, as often as there are filters in a vector.
  using Pixel = Bytes;
  // Eight bytes each of eight filters.
  struct Filters {
    Bytes pair[4];
  };
  // Sums of eight filters.
  struct Sums {
    Words of[8];
  };

  static Pixel broadcast(uint64_t bytes) {
    const uint64_t twice[2] = {bytes, bytes};
    Pixel x;
    std::memcpy(&x, twice, sizeof x);
    return x;
  }
  static Filters load(const uint8_t* w) {
    Filters filters;
    std::memcpy(&filters, w, sizeof filters);
    return filters;
  }
  static Sums zero() { return Sums{}; }
  static Sums add(Sums sums, Pixel x, Filters w) {
    for (int i = 0; i < 4; i++) {
      const Bytes is_less = (Bytes)(x < w.pair[i]);
      const Bytes d = ((w.pair[i] - x) & is_less) | ((x - w.pair[i]) & ~is_less);
      Half low, high;
      std::memcpy(&low, &d, sizeof low);
      std::memcpy(&high, reinterpret_cast<const char*>(&d) + sizeof low, sizeof high);
      sums.of[2 * i] += __builtin_convertvector(low, Words);
      sums.of[2 * i + 1] += __builtin_convertvector(high, Words);
    }
    return sums;
  }
  // The bytes of x where the mask has ones, for the last step of a run.
  static Pixel keep(Pixel x, Pixel mask) { return x & mask; }
  // total[f] += the sum of filter f. Types whose sums never have to be moved to their totals have
  // store() instead, total[f] = the sum of filter f.
  static void add_to(int32_t* total, Sums sums) {
    for (int f = 0; f < 8; f++) {
      int32_t sum = 0;
      for (int i = 0; i < 8; i++) sum += sums.of[f][i];
      total[f] += sum;
    }
  }
};

// Products of unsigned pixels and signed filters.
struct ConvolutionPortable {
  static constexpr int kPixels = 2, kBlocks = 1, kSign = 1;
  static constexpr int64_t kMaxSteps = INT64_MAX;

  using Narrow = NarrowPortable;

  typedef int8_t Signed __attribute__((vector_size(8)));
  typedef uint8_t Unsigned __attribute__((vector_size(8)));
  typedef int16_t Shorts __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(32)));

  using Pixel = Shorts;
  struct Filters {
    Signed of[8];
  };
  struct Sums {
    Ints of[8];
  };

  static Pixel broadcast(uint64_t bytes) {
    Unsigned x;
    std::memcpy(&x, &bytes, sizeof x);
    return __builtin_convertvector(x, Shorts);
  }
  static Filters load(const uint8_t* w) {
    Filters filters;
    std::memcpy(&filters, w, sizeof filters);
    return filters;
  }
  static Sums zero() { return Sums{}; }
  static Sums add(Sums sums, Pixel x, Filters w) {
    // 255 * 128 fits 16 bits.
    for (int f = 0; f < 8; f++)
      sums.of[f] += __builtin_convertvector(x * __builtin_convertvector(w.of[f], Shorts), Ints);
    return sums;
  }
  static void store(int32_t* total, Sums sums) {
    for (int f = 0; f < 8; f++) {
      int32_t sum = 0;
      for (int i = 0; i < 8; i++) sum += sums.of[f][i];
      total[f] = sum;
    }
  }
};

}  // namespace
