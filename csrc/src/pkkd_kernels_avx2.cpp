// PKKD's kernels compiled for avx2.
#include "lp_simd_avx2.h"

#include "pkkd.h"
#include "pkkd_table.h"

namespace torchadder {
namespace {

constexpr PkkdKernels kKernels = {pkkd_sums<LpAvx2F32>, pkkd_gradient<LpAvx2F32>};

}  // namespace

const PkkdKernels* pkkd_avx2_kernels() { return &kKernels; }

}  // namespace torchadder
