// y = -sum |x - w| or sum x w of bytes, as int32 or requantised. V is a vector type of simd_*.h. Everything here
// is local to the translation unit that includes it, which is compiled for one instruction set.
//
// A tile of V::kPixels pixels and V::kBlocks blocks of eight filters is summed in registers; what one
// pixel contributes to eight filters is one or two instructions and one or two additions a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "int8/narrow_portable.h"
#include "int8/plan.h"

namespace {

using torchadder::int8::ceil_div;
using torchadder::int8::kBlock;
using torchadder::int8::kStepBytes;
using torchadder::int8::Plan;
using torchadder::int8::Run;

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

inline Bytes allocate(int64_t bytes) {
  return Bytes(static_cast<uint8_t*>(std::aligned_alloc(64, ceil_div(bytes, 64) * 64)));
}

inline uint64_t load_step(const uint8_t* from) {
  uint64_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

// The first `count` bytes of a step, 1 .. 7, on machines of either order.
inline uint64_t tail_mask(int count) {
  uint8_t mask[8] = {};
  std::memset(mask, 0xFF, static_cast<size_t>(count));
  return load_step(mask);
}

// Calls f with 0, 1 .. kCount - 1 as constants. What the bodies index stays in registers, which a loop
// that is unrolled later does not achieve.
template <class F, int... kIndex>
inline void each(std::integer_sequence<int, kIndex...>, F&& f) {
  (f(std::integral_constant<int, kIndex>{}), ...);
}

template <int kCount, class F>
inline void each(F&& f) {
  each(std::make_integer_sequence<int, kCount>{}, f);
}

// Sums of one tile: total[pixel * pitch + filter] for windows that begin at base[pixel].
template <class V, int kPixels, int kBlocks>
void sum_tile(const Plan& plan, const uint8_t* const* base, const uint8_t* filters,
              int32_t* total, int64_t pitch) {
  // Products with the zeros that fill up filters vanish; distances to them have to be masked.
  constexpr bool kMasksTails = V::kSign < 0;
  constexpr bool kFlushes = V::kMaxSteps < INT64_MAX;
  typename V::Sums sums[kPixels][kBlocks];
  const uint8_t* from[kPixels];
  each<kPixels>([&](auto p) {
    from[p] = base[p];
    each<kBlocks>([&](auto b) { sums[p][b] = V::zero(); });
    if constexpr (kFlushes)
      std::memset(total + p * pitch, 0, sizeof(int32_t) * kBlocks * kBlock);
  });
  const int64_t stride = plan.num_blocks * kBlock * kStepBytes;
  auto step = [&](int64_t offset, [[maybe_unused]] uint64_t mask, auto is_tail) {
    typename V::Filters w[kBlocks];
    each<kBlocks>([&](auto b) { w[b] = V::load(filters + b * kBlock * kStepBytes); });
    each<kPixels>([&](auto p) {
      typename V::Pixel x = V::broadcast(load_step(from[p] + offset));
      if constexpr (is_tail && kMasksTails) x = V::keep(x, V::broadcast(mask));
      each<kBlocks>([&](auto b) { sums[p][b] = V::add(sums[p][b], x, w[b]); });
    });
    filters += stride;
  };
  [[maybe_unused]] int64_t left = V::kMaxSteps;
  auto count_step = [&] {
    if constexpr (kFlushes) {
      if (--left > 0) return;
      left = V::kMaxSteps;
      each<kPixels>([&](auto p) {
        each<kBlocks>([&](auto b) {
          V::add_to(total + p * pitch + b * kBlock, sums[p][b]);
          sums[p][b] = V::zero();
        });
      });
    }
  };
  for (const Run& run : plan.runs) {
    int64_t offset = run.offset;
    for (int64_t i = 0; i < run.full_steps; i++, offset += kStepBytes) {
      step(offset, 0, std::false_type{});
      count_step();
    }
    if (run.tail_bytes > 0) {
      step(offset, tail_mask(run.tail_bytes), std::true_type{});
      count_step();
    }
  }
  each<kPixels>([&](auto p) {
    each<kBlocks>([&](auto b) {
      int32_t* to = total + p * pitch + b * kBlock;
      if constexpr (kFlushes)
        V::add_to(to, sums[p][b]);
      else
        V::store(to, sums[p][b]);
    });
  });
}

template <class V>
using Tile = void (*)(const Plan&, const uint8_t* const*, const uint8_t*, int32_t*, int64_t);

// The tile of `pixels` pixels, 1 .. kPixels, and kBlocks blocks.
template <class V, int kBlocks, int kPixels = V::kPixels>
Tile<V> choose_pixels(int pixels) {
  if constexpr (kPixels == 1) {
    return sum_tile<V, 1, kBlocks>;
  } else {
    return pixels == kPixels ? sum_tile<V, kPixels, kBlocks>
                             : choose_pixels<V, kBlocks, kPixels - 1>(pixels);
  }
}

template <class V, int kBlocks = V::kBlocks>
Tile<V> choose_tile(int pixels, int blocks) {
  if constexpr (kBlocks == 1) {
    return choose_pixels<V, 1>(pixels);
  } else {
    return blocks == kBlocks ? choose_pixels<V, kBlocks>(pixels)
                             : choose_tile<V, kBlocks - 1>(pixels, blocks);
  }
}

// Where sums go: as they are, with their sign.
template <int kSign>
class SumSink {
 public:
  explicit SumSink(int32_t* y) : y_(y) {}

  void write(const int32_t* total, int64_t count, int64_t pixel, int64_t channels,
             int64_t channel) const {
    int32_t* to = y_ + pixel * channels + channel;
    for (int64_t i = 0; i < count; i++) to[i] = kSign * total[i];
  }

 private:
  int32_t* y_;
};

// Or requantised to bytes.
template <int kSign, class Narrow>
class ByteSink {
 public:
  ByteSink(const ta_requantisation& how, uint8_t* y) : how_(how), narrow_(how), y_(y) {}

  void write(const int32_t* total, int64_t count, int64_t pixel, int64_t channels,
             int64_t channel) const {
    const int64_t at = pixel * channels + channel;
    const uint8_t* residual = how_.residual == nullptr ? nullptr : how_.residual + at;
    int64_t i = 0;
    if (residual == nullptr) {
      for (; i + 8 <= count; i += 8)
        narrow_.template eight<kSign>(total + i, channel + i, nullptr, y_ + at + i);
    } else {
      for (; i + 8 <= count; i += 8)
        narrow_.template eight<kSign>(total + i, channel + i, residual + i, y_ + at + i);
    }
    for (; i < count; i++) {
      int64_t value = how_.offset[channel + i] +
                      kSign * static_cast<int64_t>(total[i]) * how_.multiplier[channel + i];
      if (residual != nullptr)
        value += static_cast<int64_t>(how_.residual_multiplier) * residual[i];
      y_[at + i] = narrow(value, how_);
    }
  }

 private:
  const ta_requantisation how_;
  const Narrow narrow_;
  uint8_t* const y_;
};

template <class V, class Sink>
class Convolution {
 public:
  Convolution(const ta_int8_problem& problem, const uint8_t* x, const uint8_t* packed,
              uint8_t zero_point, const Sink& sink)
      : plan_(torchadder::int8::make_plan(problem)),
        p_(plan_.problem),
        x_(x),
        packed_(packed),
        zero_point_(zero_point),
        sink_(sink) {}

  int run(int threads) {
    // Units alone may be too few for the threads; then several of them share a unit's filters, and
    // each copies the slab.
    const int64_t units = p_.batch * plan_.units_per_image;
    const int64_t panels = plan_.depthwise ? 1 : ceil_div(plan_.num_blocks, V::kBlocks);
    const int64_t groups = plan_.depthwise ? 1 : p_.groups;
    const int64_t shares =
        std::min(panels, std::max<int64_t>(1, ceil_div(2 * threads, units * groups)));
    const int64_t panels_per_share = ceil_div(panels, shares);
    const int64_t jobs = units * groups * shares;
    bool failed = false;
#pragma omp parallel num_threads(threads) if (jobs > 1)
    {
      Bytes slab = allocate(plan_.in_place ? 1 : plan_.slab_bytes());
      Bytes total = allocate(scratch_bytes());
      if (slab == nullptr || total == nullptr) {
#pragma omp atomic write
        failed = true;
      }
#pragma omp barrier
      if (!failed) {
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < jobs; job++) {
          const int64_t share = job % shares, unit = job / shares % units;
          const int64_t group = job / shares / units;
          compute(unit, group, share * panels_per_share,
                  std::min(panels, (share + 1) * panels_per_share), slab.get(),
                  reinterpret_cast<int32_t*>(total.get()));
        }
      }
    }
    return failed ? TA_OUT_OF_MEMORY : TA_OK;
  }

 private:
  int64_t scratch_bytes() const {
    const int64_t channels = plan_.depthwise ? p_.out_channels : V::kPixels * V::kBlocks * kBlock;
    return channels * static_cast<int64_t>(sizeof(int32_t));
  }

  // Output rows of a unit, all columns, of the filters in some panels of a group.
  void compute(int64_t unit, int64_t group, int64_t first_panel, int64_t end_panel, uint8_t* slab,
               int32_t* total) const {
    const int64_t n = unit / plan_.units_per_image;
    const int64_t row0 = unit % plan_.units_per_image * plan_.unit_rows;
    const int64_t row1 = std::min(row0 + plan_.unit_rows, p_.out_height);
    const int64_t first_channel = group * plan_.depth;
    const uint8_t* windows;
    if (plan_.in_place) {
      windows = x_ + ((n * p_.height + row0 * p_.stride_h) * p_.width) * p_.in_channels +
                first_channel;
    } else {
      fill_slab(n, row0, row1, first_channel, slab);
      windows = slab;
    }
    const int64_t pixel0 = (n * p_.out_height + row0) * p_.out_width;
    const int64_t pixels = (row1 - row0) * p_.out_width;
    if (plan_.depthwise) {
      for (int64_t i = 0; i < pixels; i++) sum_channels(window(windows, i), pixel0 + i, total);
      return;
    }
    for (int64_t panel = first_panel; panel < end_panel; panel++)
      sum_panel(windows, group, panel, pixel0, pixels, total);
  }

  // All pixels of a unit and the filters of one panel.
  void sum_panel(const uint8_t* windows, int64_t group, int64_t panel, int64_t pixel0,
                 int64_t num_pixels, int32_t* total) const {
    const int64_t block = panel * V::kBlocks;
    const int blocks = static_cast<int>(std::min<int64_t>(V::kBlocks, plan_.num_blocks - block));
    const int64_t pitch = blocks * kBlock;
    const int64_t count = std::min(pitch, plan_.group_filters - block * kBlock);
    const int64_t channel = group * plan_.group_filters + block * kBlock;
    const uint8_t* filters = packed_ + group * plan_.group_packed + block * kBlock * kStepBytes;
    const Tile<V> whole_tile = choose_tile<V>(V::kPixels, blocks);
    const uint8_t* next = windows;
    int64_t column = 0;
    for (int64_t first = 0; first < num_pixels; first += V::kPixels) {
      const int pixels = static_cast<int>(std::min<int64_t>(V::kPixels, num_pixels - first));
      const uint8_t* base[V::kPixels];
      for (int i = 0; i < pixels; i++) {
        base[i] = next;
        next += p_.stride_w * plan_.pixel_bytes;
        if (++column == p_.out_width) {
          column = 0;
          windows += p_.stride_h * plan_.row_bytes;
          next = windows;
        }
      }
      const Tile<V> tile = pixels == V::kPixels ? whole_tile : choose_tile<V>(pixels, blocks);
      tile(plan_, base, filters, total, pitch);
      for (int i = 0; i < pixels; i++)
        sink_.write(total + i * pitch, count, pixel0 + first + i, p_.out_channels, channel);
    }
  }

  // A depthwise layer: every channel of one pixel.
  void sum_channels(const uint8_t* base, int64_t pixel, int32_t* total) const {
    const int64_t channels = p_.out_channels;
    std::memset(total, 0, sizeof(int32_t) * static_cast<size_t>(channels));
    const uint8_t* w = packed_;
    for (int64_t r = 0; r < p_.kernel_h; r++)
      for (int64_t s = 0; s < p_.kernel_w; s++, w += channels) {
        const uint8_t* x = base + r * p_.dilation_h * plan_.row_bytes +
                           s * p_.dilation_w * plan_.pixel_bytes;
        if constexpr (V::kSign < 0) {
          for (int64_t c = 0; c < channels; c++)
            total[c] += x[c] < w[c] ? w[c] - x[c] : x[c] - w[c];
        } else {
          for (int64_t c = 0; c < channels; c++) total[c] += x[c] * static_cast<int8_t>(w[c]);
        }
      }
    sink_.write(total, channels, pixel, channels, 0);
  }

  // Where the window of a unit's pixel begins.
  const uint8_t* window(const uint8_t* windows, int64_t pixel) const {
    return windows + pixel / p_.out_width * p_.stride_h * plan_.row_bytes +
           pixel % p_.out_width * p_.stride_w * plan_.pixel_bytes;
  }

  // Copies what the output rows row0 .. row1 read, zero points around the image.
  void fill_slab(int64_t n, int64_t row0, int64_t row1, int64_t first_channel,
                 uint8_t* slab) const {
    const int64_t rows = (row1 - row0 - 1) * p_.stride_h + (p_.kernel_h - 1) * p_.dilation_h + 1;
    const int64_t pixel = plan_.pixel_bytes;
    const int64_t left = std::min(p_.pad_w, plan_.slab_cols);
    const int64_t inside = std::max<int64_t>(0, std::min(p_.width, plan_.slab_cols - left));
    for (int64_t i = 0; i < rows; i++) {
      const int64_t h = row0 * p_.stride_h - p_.pad_h + i;
      uint8_t* to = slab + i * plan_.row_bytes;
      if (h < 0 || h >= p_.height) {
        std::memset(to, zero_point_, static_cast<size_t>(plan_.row_bytes));
        continue;
      }
      const uint8_t* from = x_ + (n * p_.height + h) * p_.width * p_.in_channels;
      std::memset(to, zero_point_, static_cast<size_t>(left * pixel));
      to += left * pixel;
      if (pixel == p_.in_channels) {
        std::memcpy(to, from, static_cast<size_t>(inside * pixel));
      } else {
        for (int64_t j = 0; j < inside; j++)
          std::memcpy(to + j * pixel, from + j * p_.in_channels + first_channel,
                      static_cast<size_t>(pixel));
      }
      std::memset(to + inside * pixel, zero_point_,
                  static_cast<size_t>((plan_.slab_cols - left - inside) * pixel));
    }
    // The last step of the last row may read on.
    std::memset(slab + rows * plan_.row_bytes, 0, kStepBytes);
  }

  const Plan plan_;
  const ta_int8_problem& p_;
  const uint8_t* x_;
  const uint8_t* packed_;
  const uint8_t zero_point_;
  const Sink sink_;
};

template <class V>
int sums(const ta_int8_problem& problem, const uint8_t* x, const uint8_t* packed,
         uint8_t zero_point, int32_t* y, int threads) {
  return Convolution<V, SumSink<V::kSign>>(problem, x, packed, zero_point, SumSink<V::kSign>(y))
      .run(threads);
}

template <class V>
int requantised(const ta_int8_problem& problem, const uint8_t* x, const uint8_t* packed,
                uint8_t zero_point, const ta_requantisation& how, uint8_t* y, int threads) {
  using Sink = ByteSink<V::kSign, typename V::Narrow>;
  return Convolution<V, Sink>(problem, x, packed, zero_point, Sink(how, y)).run(threads);
}

}  // namespace
