// Largest bytes of windows, channel by channel. Everything here is local to the translation unit that
// includes it; compilers make vectors of the loop over channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "torchadder_int8.h"

namespace {

// The taps of a window that are inside of the image, in one direction.
struct Taps {
  int64_t begin, end;
};

inline Taps taps_inside(int64_t first, int64_t kernel, int64_t dilation, int64_t size) {
  const int64_t before = first < 0 ? (-first + dilation - 1) / dilation : 0;
  const int64_t fitting = first < size ? (size - 1 - first) / dilation + 1 : 0;
  return {before, std::min(kernel, fitting)};
}

inline int max_pool2d(const ta_int8_problem& p, const uint8_t* x, uint8_t* y, int threads) {
  const int64_t channels = p.in_channels, row = p.width * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t job = 0; job < p.batch * p.out_height; job++) {
    const int64_t n = job / p.out_height, i = job % p.out_height;
    const int64_t top = i * p.stride_h - p.pad_h;
    const Taps down = taps_inside(top, p.kernel_h, p.dilation_h, p.height);
    uint8_t* to = y + job * p.out_width * channels;
    for (int64_t j = 0; j < p.out_width; j++, to += channels) {
      const int64_t left = j * p.stride_w - p.pad_w;
      const Taps across = taps_inside(left, p.kernel_w, p.dilation_w, p.width);
      std::fill(to, to + channels, uint8_t{0});  // the smallest byte stands for the padding
      for (int64_t r = down.begin; r < down.end; r++) {
        const uint8_t* line = x + (n * p.height + top + r * p.dilation_h) * row;
        for (int64_t s = across.begin; s < across.end; s++) {
          const uint8_t* from = line + (left + s * p.dilation_w) * channels;
          for (int64_t c = 0; c < channels; c++) to[c] = std::max(to[c], from[c]);
        }
      }
    }
  }
  return TA_OK;
}

}  // namespace
