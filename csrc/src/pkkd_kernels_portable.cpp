// PKKD's kernels compiled for portable.
#include "lp_simd_portable.h"

#include "pkkd.h"
#include "pkkd_table.h"

namespace torchadder {
namespace {

constexpr PkkdKernels kKernels = {pkkd_sums<LpPortableF32>, pkkd_gradient<LpPortableF32>};

}  // namespace

const PkkdKernels* pkkd_portable_kernels() { return &kKernels; }

}  // namespace torchadder
