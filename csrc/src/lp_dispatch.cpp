// The C interface of the lp kernels: the instruction set is the one that dispatch.cpp has picked.
#include <cstring>

#include "guard.h"
#include "lp_table.h"

namespace torchadder {
namespace {

using Provider = const LpKernels* (*)(int dtype);

Provider choose() {
#if defined(TORCHADDER_X86)
  const char* name = ta_cpu_capability();
  if (std::strcmp(name, "avx512") == 0) return lp_avx512_kernels;
  if (std::strcmp(name, "avx2") == 0) return lp_avx2_kernels;
#endif
  return lp_portable_kernels;
}

const LpKernels* lp_kernels(int dtype) {
  static const Provider provider = choose();
  return provider(dtype);
}

}  // namespace
}  // namespace torchadder

using torchadder::guarded;
using torchadder::lp_kernels;

int ta_adder2d_lp_forward(const ta_problem* problem, int dtype, double p, const void* x,
                          const void* w, const void* bias, void* y, int threads) {
  return guarded([&] { return lp_kernels(dtype)->forward(*problem, p, x, w, bias, y, threads); });
}

int ta_adder2d_lp_backward_input(const ta_problem* problem, int dtype, double p, int clip,
                                 const void* gy, const void* x, const void* w, void* gx,
                                 int threads) {
  return guarded([&] {
    return lp_kernels(dtype)->backward_input(*problem, p, clip != 0, gy, x, w, gx, threads);
  });
}

int ta_adder2d_lp_backward_weight(const ta_problem* problem, int dtype, double p, const void* gy,
                                  const void* x, const void* w, void* gw, int threads) {
  return guarded(
      [&] { return lp_kernels(dtype)->backward_weight(*problem, p, gy, x, w, gw, threads); });
}
