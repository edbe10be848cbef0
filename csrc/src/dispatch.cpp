// The C interface: picks the kernels for this processor once, then forwards.
#include <cstdlib>
#include <cstring>

#include "guard.h"
#include "table.h"

namespace torchadder {
namespace {

using Provider = const Kernels* (*)(int dtype);

#if defined(TORCHADDER_X86)
// Whether the environment asks for less than the instruction set `name`.
bool lowered_below(const char* name) {
  const char* wanted = std::getenv("TORCHADDER_CPU_CAPABILITY");
  if (wanted == nullptr) return false;
  if (std::strcmp(name, "avx512") == 0)
    return std::strcmp(wanted, "avx2") == 0 || std::strcmp(wanted, "portable") == 0;
  return std::strcmp(wanted, "portable") == 0;
}
#endif

Provider choose() {
#if defined(TORCHADDER_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && !lowered_below("avx512"))
    return avx512_kernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !lowered_below("avx2"))
    return avx2_kernels;
#endif
  return portable_kernels;
}

const Kernels* kernels(int dtype) {
  static const Provider provider = choose();
  return provider(dtype);
}

}  // namespace
}  // namespace torchadder

using torchadder::guarded;
using torchadder::kernels;

int ta_abi_version(void) { return TA_ABI_VERSION; }

const char* ta_cpu_capability(void) { return kernels(TA_FLOAT32)->name; }

int ta_adder2d_forward(const ta_problem* problem, int dtype, const void* x, const void* w,
                       const void* bias, void* y, int threads) {
  return guarded([&] { return kernels(dtype)->forward(*problem, x, w, bias, y, threads); });
}

int ta_adder2d_backward_input(const ta_problem* problem, int dtype, int rule, const void* gy,
                              const void* x, const void* w, void* gx, int threads) {
  return guarded(
      [&] { return kernels(dtype)->backward_input(*problem, rule, gy, x, w, gx, threads); });
}

int ta_adder2d_backward_weight_sign(const ta_problem* problem, int dtype, const void* gy,
                                    const void* x, const void* w, void* gw, int threads) {
  return guarded(
      [&] { return kernels(dtype)->backward_weight_sign(*problem, gy, x, w, gw, threads); });
}

double ta_peak_max_add(int dtype, double seconds) { return kernels(dtype)->peak_max_add(seconds); }

double ta_peak_multiply_add(int dtype, double seconds) {
  return kernels(dtype)->peak_multiply_add(seconds);
}
