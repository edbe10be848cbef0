// The entry points of the lp kernels that each instruction set provides.
#pragma once

#include "torchadder_lp.h"

namespace torchadder {

struct LpKernels {
  int (*forward)(const ta_problem&, double p, const void* x, const void* w, const void* bias,
                 void* y, int threads);
  int (*backward_input)(const ta_problem&, double p, bool clip, const void* gy, const void* x,
                        const void* w, void* gx, int threads);
  int (*backward_weight)(const ta_problem&, double p, const void* gy, const void* x, const void* w,
                         void* gw, int threads);
};

// Indexed by ta_dtype.
const LpKernels* lp_avx512_kernels(int dtype);
const LpKernels* lp_avx2_kernels(int dtype);
const LpKernels* lp_portable_kernels(int dtype);

}  // namespace torchadder
