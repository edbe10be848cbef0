// The entry points that each instruction set provides.
#pragma once

#include "torchadder.h"

namespace torchadder {

struct Kernels {
  const char* name;
  int (*forward)(const ta_problem&, const void* x, const void* w, const void* bias, void* y,
                 int threads);
  int (*backward_input)(const ta_problem&, int rule, const void* gy, const void* x, const void* w,
                        void* gx, int threads);
  int (*backward_weight_sign)(const ta_problem&, const void* gy, const void* x, const void* w,
                              void* gw, int threads);
  double (*peak_max_add)(double seconds);
  double (*peak_multiply_add)(double seconds);
};

// Indexed by ta_dtype. Null where the compiler could not build for the instruction set.
const Kernels* avx512_kernels(int dtype);
const Kernels* avx2_kernels(int dtype);
const Kernels* portable_kernels(int dtype);

}  // namespace torchadder
