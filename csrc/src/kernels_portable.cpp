// The kernels compiled for portable.
#include "simd_portable.h"

#include "backward_input.h"
#include "backward_weight_sign.h"
#include "forward.h"
#include "peak.h"
#include "table.h"

namespace torchadder {
namespace {

template <class V>
constexpr Kernels kernels_of() {
  return {"portable", forward<V>, backward_input<V>, backward_weight_sign<V>, peak_max_add<V>, peak_multiply_add<V>};
}

constexpr Kernels kFloat32 = kernels_of<PortableF32>(), kFloat64 = kernels_of<PortableF64>();

}  // namespace

const Kernels* portable_kernels(int dtype) { return dtype == TA_FLOAT64 ? &kFloat64 : &kFloat32; }

}  // namespace torchadder
