#include "int8/plan.h"

#include <algorithm>
#include <cstring>

namespace torchadder::int8 {
namespace {

// Slabs stay in the second cache, beside a panel of filters.
constexpr int64_t kSlabBytes = 128 * 1024;
// Fewer pixels than this leave the tiles of a unit ragged.
constexpr int64_t kUnitPixels = 192;

bool is_depthwise(const ta_int8_problem& p) {
  return p.groups > 1 && p.in_channels == p.groups && p.out_channels == p.groups;
}

// Taps that follow one another in memory are one run. Only dense columns do; filters are packed in
// the same way whether or not windows are read in place, so the image's size plays no part.
bool joins_columns(const ta_int8_problem& p) {
  return p.dilation_w == 1 && (p.groups == 1 || (p.in_channels / p.groups) % kStepBytes != 0);
}

Layer make_layer(const ta_int8_problem& p) {
  Layer layer{};
  layer.depthwise = is_depthwise(p);
  layer.joined = joins_columns(p);
  layer.depth = p.in_channels / p.groups;
  layer.group_filters = p.out_channels / p.groups;
  layer.run_bytes = (layer.joined ? p.kernel_w : 1) * layer.depth;
  layer.runs_per_row = layer.joined ? 1 : p.kernel_w;
  layer.num_blocks = ceil_div(layer.group_filters, kBlock);
  layer.num_steps = p.kernel_h * layer.runs_per_row * ceil_div(layer.run_bytes, kStepBytes);
  layer.group_packed = layer.depthwise ? p.kernel_h * p.kernel_w
                                       : layer.num_steps * layer.num_blocks * kBlock * kStepBytes;
  return layer;
}

}  // namespace

Plan make_plan(const ta_int8_problem& p) {
  Plan plan{};
  static_cast<Layer&>(plan) = make_layer(p);
  plan.problem = p;
  const int64_t run_bytes = plan.run_bytes;

  // A short last step reads beyond its run, which is safe in a slab only.
  const bool padded = p.pad_h > 0 || p.pad_w > 0;
  const bool dense_pixels = p.groups == 1 || plan.depth % kStepBytes == 0;
  plan.in_place = !padded && (plan.depthwise || (dense_pixels && run_bytes % kStepBytes == 0));
  const bool whole_pixels = plan.in_place || plan.depthwise;
  plan.pixel_bytes = whole_pixels ? p.in_channels : plan.depth;
  plan.slab_cols = plan.in_place ? p.width : (p.out_width - 1) * p.stride_w +
                                                 (p.kernel_w - 1) * p.dilation_w + 1;
  plan.row_bytes = plan.slab_cols * plan.pixel_bytes;

  int64_t rows = std::max<int64_t>(1, ceil_div(kUnitPixels, p.out_width));
  const int64_t window_rows = (p.kernel_h - 1) * p.dilation_h + 1;
  while (!plan.in_place && rows > 1 &&
         ((rows - 1) * p.stride_h + window_rows) * plan.row_bytes > kSlabBytes)
    rows--;
  plan.unit_rows = std::min(rows, p.out_height);
  plan.units_per_image = ceil_div(p.out_height, plan.unit_rows);
  plan.slab_rows = (plan.unit_rows - 1) * p.stride_h + window_rows;

  for (int64_t r = 0; r < p.kernel_h; r++)
    for (int64_t s = 0; s < plan.runs_per_row; s++)
      plan.runs.push_back({r * p.dilation_h * plan.row_bytes + s * p.dilation_w * plan.pixel_bytes,
                           run_bytes / kStepBytes, static_cast<int>(run_bytes % kStepBytes)});
  return plan;
}

int64_t packed_size(const ta_int8_problem& problem) {
  return make_layer(problem).group_packed * problem.groups;
}

void pack(const ta_int8_problem& p, const uint8_t* w, uint8_t* packed) {
  const Layer layer = make_layer(p);
  const int64_t taps = p.kernel_h * p.kernel_w;
  if (layer.depthwise) {  // (C, R, S) to (R, S, C)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t c = 0; c < p.out_channels; c++) packed[tap * p.out_channels + c] = w[c * taps + tap];
    return;
  }
  std::memset(packed, 0, static_cast<size_t>(layer.group_packed * p.groups));
  const int64_t steps_per_run = layer.num_steps / (p.kernel_h * layer.runs_per_row);
  for (int64_t o = 0; o < p.out_channels; o++) {
    const int64_t group = o / layer.group_filters, filter = o % layer.group_filters;
    uint8_t* to = packed + group * layer.group_packed + filter * kStepBytes;
    for (int64_t r = 0; r < p.kernel_h; r++)
      for (int64_t s = 0; s < p.kernel_w; s++)
        for (int64_t c = 0; c < layer.depth; c++) {
          const int64_t run = layer.joined ? r : r * p.kernel_w + s;
          const int64_t byte = layer.joined ? s * layer.depth + c : c;
          const int64_t step = run * steps_per_run + byte / kStepBytes;
          to[step * layer.num_blocks * kBlock * kStepBytes + byte % kStepBytes] =
              w[(o * layer.depth + c) * taps + r * p.kernel_w + s];
        }
  }
}

}  // namespace torchadder::int8
