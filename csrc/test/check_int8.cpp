// Checks the integer kernels through the C interface against plain loops, bit for bit, on random
// problems, without torch or Python: the program that runs under AddressSanitizer and UBSan.
//
//   check_int8 [problems] [seed]
//
// TORCHADDER_CPU_CAPABILITY chooses the instruction set, as in the library.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "torchadder_int8.h"

namespace {

std::mt19937 generator;

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

int64_t between(int64_t low, int64_t high) { return low + generator() % (high - low + 1); }

std::vector<uint8_t> bytes(int64_t count) {
  // Extremes are frequent, so that sums come near their bounds.
  std::vector<uint8_t> values(static_cast<size_t>(count));
  const bool extreme = generator() % 4 == 0;
  for (uint8_t& value : values)
    value = static_cast<uint8_t>(extreme ? pick({0, 255}) : between(0, 255));
  return values;
}

bool random_problem(ta_int8_problem* p) {
  const int kind = static_cast<int>(between(0, 3));
  p->groups = kind == 0 ? pick({2, 3, 8}) : kind == 1 ? pick({2, 17, 64, 100}) : 1;
  const bool depthwise = kind == 1;
  p->in_channels = p->groups * (depthwise ? 1 : pick({1, 2, 3, 4, 8, 16, 17, 40}));
  p->out_channels = p->groups * (depthwise ? 1 : pick({1, 2, 7, 8, 16, 31, 33, 64, 70}));
  p->batch = between(1, 3);
  p->kernel_h = between(1, 4);
  p->kernel_w = between(1, 5);
  p->stride_h = between(1, 3);
  p->stride_w = between(1, 3);
  p->dilation_h = pick({1, 1, 2, 9});
  p->dilation_w = pick({1, 1, 2, 20});
  const bool padded = generator() % 2 == 0;
  p->pad_h = padded ? between(0, p->dilation_h > 3 ? 20 : 4) : 0;
  p->pad_w = padded ? between(0, p->dilation_w > 3 ? 90 : 4) : 0;
  p->height = between(1, 30);
  p->width = between(1, 30);
  const int64_t rows = p->height + 2 * p->pad_h - p->dilation_h * (p->kernel_h - 1) - 1;
  const int64_t cols = p->width + 2 * p->pad_w - p->dilation_w * (p->kernel_w - 1) - 1;
  if (rows < 0 || cols < 0) return false;
  p->out_height = rows / p->stride_h + 1;
  p->out_width = cols / p->stride_w + 1;
  return true;
}

std::vector<int32_t> plain_sums(const ta_int8_problem& p, int kind, const std::vector<uint8_t>& x,
                                const std::vector<uint8_t>& w, uint8_t zero_point) {
  const int64_t depth = p.in_channels / p.groups, filters = p.out_channels / p.groups;
  std::vector<int32_t> y;
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t i = 0; i < p.out_height; i++)
      for (int64_t j = 0; j < p.out_width; j++)
        for (int64_t o = 0; o < p.out_channels; o++) {
          int32_t sum = 0;
          for (int64_t c = 0; c < depth; c++)
            for (int64_t r = 0; r < p.kernel_h; r++)
              for (int64_t s = 0; s < p.kernel_w; s++) {
                const int64_t h = i * p.stride_h - p.pad_h + r * p.dilation_h;
                const int64_t v = j * p.stride_w - p.pad_w + s * p.dilation_w;
                const bool inside = h >= 0 && h < p.height && v >= 0 && v < p.width;
                const int64_t channel = o / filters * depth + c;
                const int pixel =
                    inside ? x[((n * p.height + h) * p.width + v) * p.in_channels + channel]
                           : zero_point;
                const uint8_t byte = w[((o * depth + c) * p.kernel_h + r) * p.kernel_w + s];
                if (kind == TA_INT8_ADDER)
                  sum -= std::abs(pixel - byte);
                else
                  sum += pixel * static_cast<int8_t>(byte);
              }
          y.push_back(sum);
        }
  return y;
}

bool check(const ta_int8_problem& p, int kind, int threads) {
  // Exactly sized, so that AddressSanitizer sees any access beyond the ends.
  const std::vector<uint8_t> x = bytes(p.batch * p.height * p.width * p.in_channels);
  const std::vector<uint8_t> w =
      bytes(p.out_channels * p.in_channels / p.groups * p.kernel_h * p.kernel_w);
  const uint8_t zero_point = static_cast<uint8_t>(between(0, 255));
  std::vector<uint8_t> packed(static_cast<size_t>(ta_int8_packed_size(&p)));
  ta_int8_pack(&p, w.data(), packed.data());

  const std::vector<int32_t> want = plain_sums(p, kind, x, w, zero_point);
  std::vector<int32_t> y(want.size(), 1);
  if (ta_int8_conv2d(&p, kind, x.data(), packed.data(), zero_point, y.data(), threads) != TA_OK ||
      y != want)
    return false;

  const size_t channels = static_cast<size_t>(p.out_channels);
  std::vector<int32_t> multiplier(channels);
  std::vector<int64_t> offset(channels);
  const int32_t bound = static_cast<int32_t>(pick({1 << 12, 1 << 20, 2147483647}));
  for (size_t o = 0; o < channels; o++) {
    multiplier[o] = static_cast<int32_t>(between(-int64_t{bound}, bound));
    // The middle of the range for a typical sum of this filter.
    offset[o] = -int64_t{multiplier[o]} * want[o] + between(-100, 100);
  }
  const std::vector<uint8_t> residual = bytes(static_cast<int64_t>(want.size()));
  for (const bool with_residual : {false, true}) {
    ta_requantisation how{};
    how.multiplier = multiplier.data();
    how.offset = offset.data();
    how.shift = static_cast<int32_t>(pick({0, 8, 20, 31}));
    how.low = static_cast<int32_t>(pick({0, 0, 100}));
    how.high = static_cast<int32_t>(pick({255, 255, 101}));
    how.residual = with_residual ? residual.data() : nullptr;
    how.residual_multiplier = static_cast<int32_t>(between(-bound, bound));
    std::vector<uint8_t> want_bytes, got(want.size(), 1);
    for (size_t i = 0; i < want.size(); i++) {
      int64_t value = int64_t{want[i]} * multiplier[i % channels] + offset[i % channels];
      if (with_residual) value += int64_t{how.residual_multiplier} * residual[i];
      value >>= how.shift;
      want_bytes.push_back(static_cast<uint8_t>(
          std::min<int64_t>(how.high, std::max<int64_t>(how.low, value))));
    }
    if (ta_int8_conv2d_requantised(&p, kind, x.data(), packed.data(), zero_point, &how, got.data(),
                                  threads) != TA_OK ||
        got != want_bytes)
      return false;
  }
  return true;
}

// The pool that the problem's window and channels make, if every window holds a pixel.
bool check_max_pool(ta_int8_problem p, int threads) {
  p.out_channels = p.groups = p.in_channels;
  const std::vector<uint8_t> x = bytes(p.batch * p.height * p.width * p.in_channels);
  std::vector<uint8_t> want;
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t i = 0; i < p.out_height; i++)
      for (int64_t j = 0; j < p.out_width; j++)
        for (int64_t c = 0; c < p.in_channels; c++) {
          int largest = -1;
          for (int64_t r = 0; r < p.kernel_h; r++)
            for (int64_t s = 0; s < p.kernel_w; s++) {
              const int64_t h = i * p.stride_h - p.pad_h + r * p.dilation_h;
              const int64_t v = j * p.stride_w - p.pad_w + s * p.dilation_w;
              if (h < 0 || h >= p.height || v < 0 || v >= p.width) continue;
              const size_t at =
                  static_cast<size_t>(((n * p.height + h) * p.width + v) * p.in_channels + c);
              largest = std::max<int>(largest, x[at]);
            }
          if (largest < 0) return true;
          want.push_back(static_cast<uint8_t>(largest));
        }
  std::vector<uint8_t> y(want.size(), 1);
  return ta_int8_max_pool2d(&p, x.data(), y.data(), threads) == TA_OK && y == want;
}

// The longest sums, of the largest terms: the bounds that torchadder_int8.h states.
bool check_longest(int kind) {
  ta_int8_problem p{};
  p.batch = p.height = p.width = p.out_height = p.out_width = 1;
  p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
  p.groups = p.out_channels = 1;
  p.in_channels = kind == TA_INT8_ADDER ? 1 << 23 : 1 << 16;
  const std::vector<uint8_t> x(static_cast<size_t>(p.in_channels), 255);
  for (const int byte : {0, 127, 128, 255}) {
    const std::vector<uint8_t> w(x.size(), static_cast<uint8_t>(byte));
    std::vector<uint8_t> packed(static_cast<size_t>(ta_int8_packed_size(&p)));
    ta_int8_pack(&p, w.data(), packed.data());
    const int64_t term = kind == TA_INT8_ADDER ? byte - 255 : 255 * int64_t{int8_t(byte)};
    int32_t y = 1;
    if (ta_int8_conv2d(&p, kind, x.data(), packed.data(), 0, &y, 1) != TA_OK ||
        y != p.in_channels * term)
      return false;
  }
  return true;
}

// Filters are packed without an image, and results of no pixel need nothing.
bool check_no_images() {
  ta_int8_problem p{};
  p.in_channels = 3;
  p.out_channels = 5;
  p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = p.groups = 1;
  const std::vector<uint8_t> w(15, 1);
  std::vector<uint8_t> packed(static_cast<size_t>(ta_int8_packed_size(&p)));
  ta_int8_pack(&p, w.data(), packed.data());
  const ta_requantisation how{};
  return packed.size() == 64 &&
         ta_int8_conv2d(&p, TA_INT8_ADDER, nullptr, packed.data(), 0, nullptr, 1) == TA_OK &&
         ta_int8_conv2d_requantised(&p, TA_INT8_ADDER, nullptr, packed.data(), 0, &how, nullptr,
                                    1) == TA_OK &&
         ta_int8_max_pool2d(&p, nullptr, nullptr, 1) == TA_OK;
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  generator.seed(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0);
  if (!check_no_images()) {
    std::printf("failed: no images\n");
    return 1;
  }
  for (const int kind : {TA_INT8_ADDER, TA_INT8_CONVOLUTION}) {
    if (!check_longest(kind)) {
      std::printf("failed: the longest sums of kind %d\n", kind);
      return 1;
    }
  }
  int checked = 0;
  while (checked < problems) {
    ta_int8_problem p{};
    if (!random_problem(&p)) continue;
    const int kind = checked % 2 == 0 ? TA_INT8_ADDER : TA_INT8_CONVOLUTION;
    const int threads = static_cast<int>(between(1, 3));
    if (!check(p, kind, threads) || !check_max_pool(p, threads)) {
      std::printf("failed: kind %d, batch %lld, in %lld x %lld x %lld, out %lld, kernel %lld x %lld, "
                  "stride %lld %lld, pad %lld %lld, dilation %lld %lld, groups %lld\n",
                  kind, (long long)p.batch, (long long)p.in_channels, (long long)p.height,
                  (long long)p.width, (long long)p.out_channels, (long long)p.kernel_h,
                  (long long)p.kernel_w, (long long)p.stride_h, (long long)p.stride_w,
                  (long long)p.pad_h, (long long)p.pad_w, (long long)p.dilation_h,
                  (long long)p.dilation_w, (long long)p.groups);
      return 1;
    }
    checked++;
  }
  std::printf("%s: %d problems checked\n", ta_cpu_capability(), checked);
  return 0;
}
