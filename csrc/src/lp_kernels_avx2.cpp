// The lp kernels compiled for avx2.
#include "lp_simd_avx2.h"

#include "lp_sum.h"
#include "lp_table.h"
#include "lp_weight.h"

namespace torchadder {
namespace {

template <class V>
constexpr LpKernels kernels_of() {
  return {lp_forward<V>, lp_backward_input<V>, lp_backward_weight<V>};
}

constexpr LpKernels kFloat32 = kernels_of<LpAvx2F32>(), kFloat64 = kernels_of<LpAvx2F64>();

}  // namespace

const LpKernels* lp_avx2_kernels(int dtype) {
  return dtype == TA_FLOAT64 ? &kFloat64 : &kFloat32;
}

}  // namespace torchadder
