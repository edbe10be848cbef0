// The integer kernels compiled for avx512vnni.
#include "int8/simd_avx512vnni.h"

#include "int8/convolution.h"
#include "int8/table.h"

namespace torchadder::int8 {

const Kernels& avx512vnni_convolution_kernels() {
  static constexpr Kernels kernels{sums<ConvolutionAvx512>, requantised<ConvolutionAvx512>};
  return kernels;
}

}  // namespace torchadder::int8
