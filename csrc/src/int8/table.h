// The entry points of the integer kernels that each instruction set provides.
#pragma once

#include "torchadder_int8.h"

namespace torchadder::int8 {

struct Kernels {
  int (*sums)(const ta_int8_problem&, const uint8_t* x, const uint8_t* packed, uint8_t zero_point,
              int32_t* y, int threads);
  int (*requantised)(const ta_int8_problem&, const uint8_t* x, const uint8_t* packed,
                     uint8_t zero_point, const ta_requantisation&, uint8_t* y, int threads);
};

using MaxPool = int (*)(const ta_int8_problem&, const uint8_t* x, uint8_t* y, int threads);

const Kernels& avx512_adder_kernels();
const Kernels& avx2_adder_kernels();
const Kernels& portable_adder_kernels();

const Kernels& avx512vnni_convolution_kernels();
const Kernels& avx2_convolution_kernels();
const Kernels& portable_convolution_kernels();

MaxPool avx2_max_pool();
MaxPool portable_max_pool();

}  // namespace torchadder::int8
