// The entry points of PKKD's kernels that each instruction set provides.
#pragma once

#include "torchadder_pkkd.h"

namespace torchadder {

struct PkkdKernels {
  int (*sums)(const ta_pkkd_problem&, double* sums, int threads);
  int (*gradient)(const ta_pkkd_problem&, const float* matrix, const float* offset,
                  const float* shift, bool wants_teacher, float* gradient, double* rate_sums,
                  int threads);
};

const PkkdKernels* pkkd_avx512_kernels();
const PkkdKernels* pkkd_avx2_kernels();
const PkkdKernels* pkkd_portable_kernels();

}  // namespace torchadder
