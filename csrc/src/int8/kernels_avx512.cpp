// The integer kernels compiled for avx512.
#include "int8/simd_avx512.h"

#include "int8/convolution.h"
#include "int8/table.h"

namespace torchadder::int8 {

const Kernels& avx512_adder_kernels() {
  static constexpr Kernels kernels{sums<AdderAvx512>, requantised<AdderAvx512>};
  return kernels;
}

}  // namespace torchadder::int8
