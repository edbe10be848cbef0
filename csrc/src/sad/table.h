// The entry points of the integer kernels that each instruction set provides.
#pragma once

#include "torchadder_sad.h"

namespace torchadder::sad {

struct Kernels {
  int (*sums)(const ta_sad_problem&, const uint8_t* x, const uint8_t* packed, uint8_t zero_point,
              int32_t* y, int threads);
  int (*requantised)(const ta_sad_problem&, const uint8_t* x, const uint8_t* packed,
                     uint8_t zero_point, const ta_requantisation&, uint8_t* y, int threads);
};

const Kernels& avx512_kernels();
const Kernels& avx2_kernels();
const Kernels& portable_kernels();

}  // namespace torchadder::sad
