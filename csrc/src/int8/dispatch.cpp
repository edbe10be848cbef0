// The C interface of the integer kernels. The instruction set is the one that ../dispatch.cpp has
// picked, if it has the instructions for bytes, too.
#include <cstring>

#include "guard.h"
#include "int8/plan.h"
#include "int8/table.h"

namespace torchadder::int8 {
namespace {

bool picked(const char* name) { return std::strcmp(ta_cpu_capability(), name) == 0; }

const Kernels& choose_adder() {
#if defined(TORCHADDER_X86)
  if (picked("avx512") && __builtin_cpu_supports("avx512bw")) return avx512_adder_kernels();
  if (picked("avx512") || picked("avx2")) return avx2_adder_kernels();
#endif
  return portable_adder_kernels();
}

const Kernels& choose_convolution() {
#if defined(TORCHADDER_X86)
  if (picked("avx512") && __builtin_cpu_supports("avx512vnni"))
    return avx512vnni_convolution_kernels();
  if (picked("avx512") || picked("avx2")) return avx2_convolution_kernels();
#endif
  return portable_convolution_kernels();
}

MaxPool choose_max_pool() {
#if defined(TORCHADDER_X86)
  if (picked("avx512") || picked("avx2")) return avx2_max_pool();
#endif
  return portable_max_pool();
}

const Kernels& kernels(int kind) {
  static const Kernels& adder = choose_adder();
  static const Kernels& convolution = choose_convolution();
  return kind == TA_INT8_CONVOLUTION ? convolution : adder;
}

bool is_empty(const ta_int8_problem& p) {
  return p.batch == 0 || p.out_channels == 0 || p.out_height == 0 || p.out_width == 0;
}

const uint8_t* bytes(const void* packed) { return static_cast<const uint8_t*>(packed); }

}  // namespace
}  // namespace torchadder::int8

using torchadder::guarded;
using torchadder::int8::bytes;
using torchadder::int8::is_empty;
using torchadder::int8::kernels;

int64_t ta_int8_packed_size(const ta_int8_problem* problem) {
  return torchadder::int8::packed_size(*problem);
}

void ta_int8_pack(const ta_int8_problem* problem, const void* w, void* packed) {
  torchadder::int8::pack(*problem, bytes(w), static_cast<uint8_t*>(packed));
}

int ta_int8_conv2d(const ta_int8_problem* problem, int kind, const uint8_t* x, const void* packed,
                   uint8_t zero_point, int32_t* y, int threads) {
  if (is_empty(*problem)) return TA_OK;
  return guarded(
      [&] { return kernels(kind).sums(*problem, x, bytes(packed), zero_point, y, threads); });
}

int ta_int8_conv2d_requantised(const ta_int8_problem* problem, int kind, const uint8_t* x,
                               const void* packed, uint8_t zero_point,
                               const ta_requantisation* requantisation, uint8_t* y, int threads) {
  if (is_empty(*problem)) return TA_OK;
  return guarded([&] {
    return kernels(kind).requantised(*problem, x, bytes(packed), zero_point, *requantisation, y,
                                     threads);
  });
}

int ta_int8_max_pool2d(const ta_int8_problem* problem, const uint8_t* x, uint8_t* y, int threads) {
  static const torchadder::int8::MaxPool max_pool = torchadder::int8::choose_max_pool();
  if (is_empty(*problem)) return TA_OK;
  return guarded([&] { return max_pool(*problem, x, y, threads); });
}
