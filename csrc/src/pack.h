// Copies between tensors and the layouts that the inner loops read: slabs, packed weights, stages.
// V is a vector type of simd_*.h. Everything here is local to the translation unit that includes it,
// which is compiled for one instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "plan.h"

namespace {

using torchadder::Panel;
using torchadder::Plan;
using torchadder::Unit;

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Uninitialised memory aligned to a cache line; `ok()` is false when there was none.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t elements) {
    const size_t bytes = (static_cast<size_t>(max64(elements, 1)) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  bool ok() const { return data_ != nullptr; }
  T* data() const { return data_; }

 private:
  T* data_;
};

// Packs one channels-last row: dst[col * slots + slot] = source row of channel(slot), zero outside.
// `row` points at column 0 of channel 0, or is null for a row of padding.
template <class V, class Channel>
void pack_row(const typename V::T* row, int64_t channel_stride, int64_t col_stride, int64_t width,
              int64_t col0, int64_t cols, int64_t slots, bool identity, Channel channel,
              typename V::T* dst) {
  using T = typename V::T;
  const int64_t first = row ? min64(max64(-col0, 0), cols) : cols;
  const int64_t last = row ? max64(min64(width - col0, cols), first) : cols;
  if (first > 0) std::memset(dst, 0, sizeof(T) * first * slots);
  if (last < cols) std::memset(dst + last * slots, 0, sizeof(T) * (cols - last) * slots);
  if (first == last) return;
  const T* from = row + (col0 + first) * col_stride;
  T* to = dst + first * slots;
  const int64_t count = last - first;
  if (identity && channel_stride == 1) {
    const T* start = from + channel(0);
    if (col_stride == slots) {
      std::memcpy(to, start, sizeof(T) * count * slots);
    } else {
      for (int64_t i = 0; i < count; i++)
        std::memcpy(to + i * slots, start + i * col_stride, sizeof(T) * slots);
    }
    return;
  }
  static const T zeros[V::lanes] = {};
  for (int64_t slot = 0; slot < slots; slot += V::lanes) {
    const int num_slots = static_cast<int>(min64(V::lanes, slots - slot));
    if (col_stride == 1) {
      for (int64_t i = 0; i < count; i += V::lanes) {
        const T* rows[V::lanes];
        for (int j = 0; j < num_slots; j++) {
          const int64_t c = channel(slot + j);
          rows[j] = c < 0 ? zeros : from + c * channel_stride + i;
        }
        V::transpose(rows, num_slots, static_cast<int>(min64(V::lanes, count - i)),
                     to + i * slots + slot, slots);
      }
    } else {
      for (int j = 0; j < num_slots; j++) {
        const int64_t c = channel(slot + j);
        for (int64_t i = 0; i < count; i++)
          to[i * slots + slot + j] = c < 0 ? T(0) : from[c * channel_stride + i * col_stride];
      }
    }
  }
}

// Copies the part of the source that a unit reads, channels last, zeros around the image.
template <class V>
void pack_slab(const Plan& plan, const Unit& unit, int64_t slice, const typename V::T* source,
               typename V::T* slab) {
  const int64_t* stride = plan.source_strides;
  const int64_t depth = plan.depth, lanes = plan.lanes;
  const bool lanewise = plan.lanewise;
  // A depthwise layer with one filter a channel reads neighbouring channels in neighbouring lanes.
  const bool identity = lanewise ? depth == 1 && plan.group_result == 1 &&
                                       (slice + 1) * lanes <= plan.result_channels
                                 : true;
  auto channel = [&](int64_t slot) {
    return lanewise ? plan.source_channel(slice, slot / lanes, slot % lanes)
                    : slice * depth + slot;
  };
  // Columns that follow one another in the source are copied together.
  const bool whole = plan.cols.source_step == plan.cols.slab_step;
  const int64_t stretch = whole ? plan.slab_cols : plan.cols.slab_step;
  for (int64_t n = unit.n0; n < unit.n1; n++) {
    for (int64_t i = 0; i < plan.slab_rows; i++) {
      const int64_t h = unit.row0 + plan.rows.source(i);
      const bool inside = h >= 0 && h < plan.source_h;
      const typename V::T* row = inside ? source + n * stride[0] + h * stride[2] : nullptr;
      typename V::T* dst =
          slab + ((n - unit.n0) * plan.slab_rows + i) * plan.slab_cols * plan.slots;
      for (int64_t j = 0; j < plan.slab_cols; j += stretch)
        pack_row<V>(row, stride[1], stride[3], plan.source_w, unit.col0 + plan.cols.source(j),
                    min64(stretch, plan.slab_cols - j), plan.slots, identity, channel,
                    dst + j * plan.slots);
    }
  }
}

// Copies `lanes` result channels of a unit's box, starting with `channel0`: dst[pixel * lanes + l].
template <class V>
void pack_box(const Unit& unit, const typename V::T* tensor, const int64_t* stride,
              int64_t channel0, int64_t num_channels, typename V::T* dst) {
  const int64_t cols = unit.w1 - unit.w0, rows = unit.h1 - unit.h0;
  auto channel = [&](int64_t slot) { return slot < num_channels ? channel0 + slot : -1; };
  for (int64_t n = unit.n0; n < unit.n1; n++)
    for (int64_t h = unit.h0; h < unit.h1; h++)
      pack_row<V>(tensor + n * stride[0] + h * stride[2], stride[1], stride[3], unit.w1, unit.w0,
                  cols, V::lanes, num_channels == V::lanes, channel,
                  dst + ((n - unit.n0) * rows + h - unit.h0) * cols * V::lanes);
}

// Writes a stage (pixels of the unit's box, `pitch` lanes each) to result channels channel0...
template <class V>
void write_box(const Unit& unit, const typename V::T* stage, int64_t pitch, int64_t channel0,
               int64_t num_channels, const int64_t* stride, typename V::T* result) {
  using T = typename V::T;
  const int64_t cols = unit.w1 - unit.w0, rows = unit.h1 - unit.h0;
  // Pixels that are contiguous in a plane are written together.
  const bool flat = stride[2] == cols * stride[3];
  const int64_t run = flat ? rows * cols : cols, runs = flat ? 1 : rows;
  for (int64_t n = unit.n0; n < unit.n1; n++) {
    for (int64_t j = 0; j < runs; j++) {
      const T* from = stage + ((n - unit.n0) * rows * cols + j * cols) * pitch;
      T* to = result + n * stride[0] + (unit.h0 + j) * stride[2] + unit.w0 * stride[3] +
              channel0 * stride[1];
      if (stride[1] == 1) {
        for (int64_t i = 0; i < run; i++)
          std::memcpy(to + i * stride[3], from + i * pitch, sizeof(T) * num_channels);
        continue;
      }
      for (int64_t i = 0; i < run; i += V::lanes) {
        const int num_pixels = static_cast<int>(min64(V::lanes, run - i));
        for (int64_t c = 0; c < num_channels; c += V::lanes) {
          const T* pixels[V::lanes];
          for (int k = 0; k < num_pixels; k++) pixels[k] = from + (i + k) * pitch + c;
          V::transpose(pixels, num_pixels, static_cast<int>(min64(V::lanes, num_channels - c)),
                       to + i + c * stride[1], stride[1]);
        }
      }
    }
  }
}

// Packs one vector of filters in the order of summation: dst[row * pitch + lane].
template <class V>
void pack_filters(const Plan& plan, const typename V::T* w, int64_t first_channel,
                  int64_t num_channels, int64_t pitch, typename V::T* dst) {
  using T = typename V::T;
  static const T zeros[V::lanes] = {};
  alignas(64) T block[V::lanes * V::lanes];
  const int64_t taps = plan.num_taps, depth = plan.depth;
  const bool joined = plan.weight_depth_stride == taps;  // depths follow one another in memory
  const int64_t columns = joined ? depth * taps : taps;
  for (int64_t outer = 0; outer < (joined ? 1 : depth); outer++) {
    for (int64_t column = 0; column < columns; column += V::lanes) {
      const int num_columns = static_cast<int>(min64(V::lanes, columns - column));
      const T* rows[V::lanes];
      for (int64_t l = 0; l < V::lanes; l++)
        rows[l] = l < num_channels ? w + plan.weight_offset(first_channel + l) +
                                         outer * plan.weight_depth_stride + column
                                   : zeros;
      V::transpose(rows, V::lanes, num_columns, block, V::lanes);
      int64_t d = outer + column / taps, tap = column % taps;
      for (int k = 0; k < num_columns; k++) {
        const int64_t row = plan.tap_position[tap] * depth + d;
        std::memcpy(dst + row * pitch, block + k * V::lanes, sizeof(T) * V::lanes);
        if (++tap == taps) {
          tap = 0;
          d++;
        }
      }
    }
  }
}

inline int64_t panel_channels(const Plan& plan, int64_t slice, const Panel& panel) {
  const int64_t slice_end = min64((slice + 1) * plan.slice_channels, plan.result_channels);
  const int64_t first = slice * plan.slice_channels + panel.first_lane;
  return max64(0, min64(panel.num_vectors * plan.lanes, slice_end - first));
}

// Packs all filters; `packed` holds num_slices * slice_weights elements.
template <class V>
void pack_weights(const Plan& plan, const typename V::T* w, typename V::T* packed, int threads) {
  const int64_t num_panels = static_cast<int64_t>(plan.panels.size());
  const int64_t jobs = plan.num_slices * num_panels;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t job = 0; job < jobs; job++) {
    const int64_t slice = job / num_panels;
    const Panel& panel = plan.panels[job % num_panels];
    const int64_t channels = panel_channels(plan, slice, panel);
    const int64_t first = slice * plan.slice_channels + panel.first_lane;
    const int64_t pitch = panel.num_vectors * plan.lanes;
    typename V::T* dst = packed + slice * plan.slice_weights + panel.weights_offset;
    for (int64_t v = 0; v < panel.num_vectors; v++)
      pack_filters<V>(plan, w, first + v * plan.lanes,
                      max64(0, min64(plan.lanes, channels - v * plan.lanes)), pitch,
                      dst + v * plan.lanes);
  }
}

}  // namespace
