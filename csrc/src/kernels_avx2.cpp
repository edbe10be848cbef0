// The kernels compiled for avx2.
#include "simd_avx2.h"

#include "backward_input.h"
#include "backward_weight_sign.h"
#include "forward.h"
#include "peak.h"
#include "table.h"

namespace torchadder {
namespace {

template <class V>
constexpr Kernels kernels_of() {
  return {"avx2", forward<V>, backward_input<V>, backward_weight_sign<V>, peak_max_add<V>, peak_multiply_add<V>};
}

constexpr Kernels kFloat32 = kernels_of<Avx2F32>(), kFloat64 = kernels_of<Avx2F64>();

}  // namespace

const Kernels* avx2_kernels(int dtype) { return dtype == TA_FLOAT64 ? &kFloat64 : &kFloat32; }

}  // namespace torchadder
