// The integer kernels compiled for avx2.
#include "int8/simd_avx2.h"

#include "int8/convolution.h"
#include "int8/max_pool.h"
#include "int8/table.h"

namespace torchadder::int8 {

const Kernels& avx2_adder_kernels() {
  static constexpr Kernels kernels{sums<AdderAvx2>, requantised<AdderAvx2>};
  return kernels;
}

const Kernels& avx2_convolution_kernels() {
  static constexpr Kernels kernels{sums<ConvolutionAvx2>, requantised<ConvolutionAvx2>};
  return kernels;
}

MaxPool avx2_max_pool() { return max_pool2d; }

}  // namespace torchadder::int8
