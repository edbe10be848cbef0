// The C interface of PKKD's kernels: the instruction set is the one that dispatch.cpp has picked.
#include <cstring>

#include "guard.h"
#include "pkkd_table.h"

namespace torchadder {
namespace {

const PkkdKernels* choose() {
#if defined(TORCHADDER_X86)
  const char* name = ta_cpu_capability();
  if (std::strcmp(name, "avx512") == 0) return pkkd_avx512_kernels();
  if (std::strcmp(name, "avx2") == 0) return pkkd_avx2_kernels();
#endif
  return pkkd_portable_kernels();
}

const PkkdKernels* pkkd_kernels() {
  static const PkkdKernels* const chosen = choose();
  return chosen;
}

}  // namespace
}  // namespace torchadder

using torchadder::guarded;
using torchadder::pkkd_kernels;

int ta_pkkd_sums(const ta_pkkd_problem* problem, double* sums, int threads) {
  return guarded([&] { return pkkd_kernels()->sums(*problem, sums, threads); });
}

int ta_pkkd_gradient(const ta_pkkd_problem* problem, const float* matrix, const float* offset,
                     const float* shift, int wants_teacher, float* gradient, double* rate_sums,
                     int threads) {
  return guarded([&] {
    return pkkd_kernels()->gradient(*problem, matrix, offset, shift, wants_teacher != 0, gradient,
                                    rate_sums, threads);
  });
}
