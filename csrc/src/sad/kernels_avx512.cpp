// The integer kernels compiled for avx512.
#include "sad/simd_avx512.h"

#include "sad/convolution.h"
#include "sad/table.h"

namespace torchadder::sad {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels{sums<SadAvx512>, requantised<SadAvx512>};
  return kernels;
}

}  // namespace torchadder::sad
