// Requantises the sums of eight filters to bytes, one after the other. The narrow_*.h of other
// instruction sets do the same, eight or four at a time.
#pragma once

#include <cstdint>

#include "torchadder_int8.h"

namespace {

// One sum y, as torchadder_int8.h defines it; `value` is all but the shift and the clamp.
inline uint8_t narrow(int64_t value, const ta_requantisation& how) {
  value >>= how.shift;
  value = value < how.low ? how.low : value;
  return static_cast<uint8_t>(value > how.high ? how.high : value);
}

class NarrowPortable {
 public:
  explicit NarrowPortable(const ta_requantisation& how) : how_(how) {}

  // Filters `channel` .. `channel` + 7 with sums kSign * total; `residual` is null or theirs.
  template <int kSign>
  void eight(const int32_t* total, int64_t channel, const uint8_t* residual, uint8_t* to) const {
    for (int64_t i = 0; i < 8; i++) {
      int64_t value = how_.offset[channel + i] +
                      kSign * static_cast<int64_t>(total[i]) * how_.multiplier[channel + i];
      if (residual != nullptr)
        value += static_cast<int64_t>(how_.residual_multiplier) * residual[i];
      to[i] = narrow(value, how_);
    }
  }

 private:
  ta_requantisation how_;
};

}  // namespace
