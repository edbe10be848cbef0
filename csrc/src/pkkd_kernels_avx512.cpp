// PKKD's kernels compiled for avx512.
#include "lp_simd_avx512.h"

#include "pkkd.h"
#include "pkkd_table.h"

namespace torchadder {
namespace {

constexpr PkkdKernels kKernels = {pkkd_sums<LpAvx512F32>, pkkd_gradient<LpAvx512F32>};

}  // namespace

const PkkdKernels* pkkd_avx512_kernels() { return &kKernels; }

}  // namespace torchadder
