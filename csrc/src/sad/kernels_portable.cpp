// The integer kernels compiled for portable.
#include "sad/simd_portable.h"

#include "sad/convolution.h"
#include "sad/table.h"

namespace torchadder::sad {

const Kernels& portable_kernels() {
  static constexpr Kernels kernels{sums<SadPortable>, requantised<SadPortable>};
  return kernels;
}

}  // namespace torchadder::sad
