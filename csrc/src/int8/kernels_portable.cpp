// The integer kernels compiled for portable.
#include "int8/simd_portable.h"

#include "int8/convolution.h"
#include "int8/max_pool.h"
#include "int8/table.h"

namespace torchadder::int8 {

const Kernels& portable_adder_kernels() {
  static constexpr Kernels kernels{sums<AdderPortable>, requantised<AdderPortable>};
  return kernels;
}

const Kernels& portable_convolution_kernels() {
  static constexpr Kernels kernels{sums<ConvolutionPortable>, requantised<ConvolutionPortable>};
  return kernels;
}

MaxPool portable_max_pool() { return max_pool2d; }

}  // namespace torchadder::int8
