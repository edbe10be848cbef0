// The C interface of the integer kernels. The instruction set is the one that dispatch.cpp has picked
// for the others, if it has sums of absolute differences, too.
#include <cstring>

#include "sad/plan.h"
#include "sad/table.h"

namespace torchadder::sad {
namespace {

const Kernels& choose() {
#if defined(TORCHADDER_X86)
  const char* name = ta_cpu_capability();
  if (std::strcmp(name, "avx512") == 0)
    return __builtin_cpu_supports("avx512bw") ? avx512_kernels() : avx2_kernels();
  if (std::strcmp(name, "avx2") == 0) return avx2_kernels();
#endif
  return portable_kernels();
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace
}  // namespace torchadder::sad

using torchadder::sad::kernels;

int64_t ta_sad_packed_size(const ta_sad_problem* problem) {
  return torchadder::sad::packed_size(*problem);
}

void ta_sad_pack(const ta_sad_problem* problem, const uint8_t* w, uint8_t* packed) {
  torchadder::sad::pack(*problem, w, packed);
}

int ta_sad_conv2d(const ta_sad_problem* problem, const uint8_t* x, const uint8_t* packed,
                  uint8_t zero_point, int32_t* y, int threads) {
  return kernels().sums(*problem, x, packed, zero_point, y, threads);
}

int ta_sad_conv2d_requantised(const ta_sad_problem* problem, const uint8_t* x,
                              const uint8_t* packed, uint8_t zero_point,
                              const ta_requantisation* requantisation, uint8_t* y, int threads) {
  return kernels().requantised(*problem, x, packed, zero_point, *requantisation, y, threads);
}
