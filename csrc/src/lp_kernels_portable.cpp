// The lp kernels compiled for portable.
#include "lp_simd_portable.h"

#include "lp_sum.h"
#include "lp_table.h"
#include "lp_weight.h"

namespace torchadder {
namespace {

template <class V>
constexpr LpKernels kernels_of() {
  return {lp_forward<V>, lp_backward_input<V>, lp_backward_weight<V>};
}

constexpr LpKernels kFloat32 = kernels_of<LpPortableF32>(), kFloat64 = kernels_of<LpPortableF64>();

}  // namespace

const LpKernels* lp_portable_kernels(int dtype) {
  return dtype == TA_FLOAT64 ? &kFloat64 : &kFloat32;
}

}  // namespace torchadder
