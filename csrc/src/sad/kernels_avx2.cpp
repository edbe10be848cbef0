// The integer kernels compiled for avx2.
#include "sad/simd_avx2.h"

#include "sad/convolution.h"
#include "sad/table.h"

namespace torchadder::sad {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels{sums<SadAvx2>, requantised<SadAvx2>};
  return kernels;
}

}  // namespace torchadder::sad
