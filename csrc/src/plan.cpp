#include "plan.h"

#include <algorithm>
#include <new>

namespace torchadder {
namespace {

// Slab, stage and a block of weights share the second-level cache.
constexpr int64_t kSlabBytes = 384 * 1024;
constexpr int64_t kMaxPixels = 512;
constexpr int64_t kBlockRows = 512;
constexpr int64_t kMaxForwardVectors = 4;
// Enough pieces to keep two to eight threads evenly busy; never a function of the thread count.
constexpr int64_t kMinTasks = 16;
constexpr int64_t kMinPixels = 96;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// Steps from `from` up to the next number that leaves `remainder` when divided by `stride`.
int64_t distance_to(int64_t remainder, int64_t from, int64_t stride) {
  return (remainder - from % stride + stride) % stride;
}

// The largest part of `total` that is at most `limit` and cuts it into even pieces.
int64_t even_part(int64_t total, int64_t limit) {
  return ceil_div(total, ceil_div(total, std::max<int64_t>(1, limit)));
}

Axis slab_axis(Direction direction, int64_t pixels, int64_t kernel, int64_t stride,
               int64_t dilation) {
  if (direction == Direction::kForward) {
    const int64_t span = (pixels - 1) * stride + 1, step = std::min(dilation, span);
    return {kernel, dilation, step, (kernel - 1) * step + span, 0};
  }
  const int64_t span = ceil_div(pixels - 1, stride) + 1;
  if (dilation % stride != 0) {  // taps fall between the pixels of the source: keep it whole
    const int64_t shift = (kernel - 1) * dilation / stride;
    return {1, 1, 1, shift + span, shift};
  }
  const int64_t step = std::min(dilation / stride, span);
  return {kernel, dilation / stride, step, (kernel - 1) * step + span, (kernel - 1) * step};
}

void set_slab(Plan* plan, const ta_problem& p) {
  plan->rows = slab_axis(plan->direction, plan->box_h, p.kernel_h, p.stride_h, p.dilation_h);
  plan->cols = slab_axis(plan->direction, plan->box_w, p.kernel_w, p.stride_w, p.dilation_w);
  plan->slab_rows = plan->rows.size;
  plan->slab_cols = plan->cols.size;
}

bool fits(Plan* plan, const ta_problem& p, int64_t n, int64_t h, int64_t w, int64_t budget) {
  plan->box_n = n;
  plan->box_h = h;
  plan->box_w = w;
  set_slab(plan, p);
  return plan->slab_elements() <= budget && plan->box_pixels() <= kMaxPixels;
}

template <class Fits>
int64_t largest(int64_t limit, Fits fits) {
  int64_t low = 1;
  while (low < limit) {
    const int64_t middle = (low + limit + 1) / 2;
    if (fits(middle))
      low = middle;
    else
      limit = middle - 1;
  }
  return low;
}

void choose_box(Plan* plan, const ta_problem& p, int64_t budget) {
  const int64_t N = std::max<int64_t>(1, plan->batch), H = plan->result_h, W = plan->result_w;
  int64_t w = largest(W, [&](int64_t w) { return fits(plan, p, 1, 1, w, budget); });
  w = even_part(W, w);
  int64_t h = w < W ? 1 : largest(H, [&](int64_t h) { return fits(plan, p, 1, h, w, budget); });
  h = even_part(H, h);
  int64_t n = h < H ? 1 : largest(N, [&](int64_t n) { return fits(plan, p, n, h, w, budget); });
  n = even_part(N, n);
  const int64_t pieces = plan->num_slices * static_cast<int64_t>(plan->panels.size());
  auto too_few = [&] {
    const int64_t units = ceil_div(N, n) * ceil_div(H, h) * ceil_div(W, w);
    return units * pieces < kMinTasks && n * h * w > kMinPixels;
  };
  while (too_few() && n > 1) n = ceil_div(n, 2);
  while (too_few() && h > 1) h = ceil_div(h, 2);
  while (too_few() && w > 1) w = ceil_div(w, 2);
  plan->box_n = n;
  plan->box_h = h;
  plan->box_w = w;
  set_slab(plan, p);
  plan->units_n = ceil_div(N, n);
  plan->units_h = ceil_div(H, h);
  plan->units_w = ceil_div(W, w);
}

void choose_panels(Plan* plan) {
  const int64_t vectors = ceil_div(plan->slice_channels, plan->lanes);
  const int64_t most = plan->direction == Direction::kForward ? kMaxForwardVectors : 1;
  const int64_t panels = ceil_div(vectors, most);
  int64_t lane = 0, offset = 0;
  for (int64_t i = 0; i < panels; i++) {
    const int64_t size = vectors / panels + (i < vectors % panels ? 1 : 0);
    plan->panels.push_back({lane, size, offset});
    lane += size * plan->lanes;
    offset += size * plan->lanes * plan->num_rows;
  }
  plan->slice_weights = offset;
}

struct Tap {
  int64_t index, pixel;
};

// Appends the taps of one phase, in ascending order of memory, as blocks of runs.
void add_phase(Plan* plan, int64_t row, int64_t col, const std::vector<Tap>& taps) {
  const int64_t row_step = plan->lanewise ? plan->lanes : 1;
  Phase phase{row, col, static_cast<int64_t>(plan->blocks.size()), 0};
  int64_t position = std::count_if(plan->tap_position.begin(), plan->tap_position.end(),
                                   [](int64_t placed) { return placed >= 0; });
  int64_t rows_in_block = kBlockRows;  // forces a new block
  for (const Tap& tap : taps) {
    plan->tap_position[tap.index] = position;
    plan->tap_pixel[tap.index] = tap.pixel;
    for (int64_t d = 0; d < plan->depth;) {
      if (rows_in_block == kBlockRows) {
        plan->blocks.push_back({static_cast<int64_t>(plan->runs.size()), 0,
                                position * plan->depth + d});
        phase.num_blocks++;
        rows_in_block = 0;
      }
      Block& block = plan->blocks.back();
      const int64_t rows = std::min(plan->depth - d, kBlockRows - rows_in_block);
      const int64_t offset = tap.pixel * plan->slots + d * row_step;
      Run* last = block.num_runs ? &plan->runs.back() : nullptr;
      if (last && last->offset + last->rows * row_step == offset) {
        last->rows += rows;
      } else {
        plan->runs.push_back({offset, rows});
        block.num_runs++;
      }
      rows_in_block += rows;
      d += rows;
    }
    position++;
  }
  plan->phases.push_back(phase);
}

void add_forward_taps(Plan* plan, const ta_problem& p) {
  std::vector<Tap> taps;
  for (int64_t r = 0; r < p.kernel_h; r++)
    for (int64_t s = 0; s < p.kernel_w; s++)
      taps.push_back({r * p.kernel_w + s,
                      r * plan->rows.slab_step * plan->slab_cols + s * plan->cols.slab_step});
  add_phase(plan, 0, 0, taps);
}

// Taps of one direction that the pixels of a phase see, the last first.
std::vector<int64_t> taps_of_phase(int64_t phase, int64_t kernel, int64_t stride, int64_t dilation) {
  std::vector<int64_t> taps;
  for (int64_t tap = kernel - 1; tap >= 0; tap--)
    if (tap * dilation % stride == phase) taps.push_back(tap);
  return taps;
}

void add_backward_taps(Plan* plan, const ta_problem& p) {
  for (int64_t row = 0; row < p.stride_h; row++) {
    const std::vector<int64_t> taps_h = taps_of_phase(row, p.kernel_h, p.stride_h, p.dilation_h);
    for (int64_t col = 0; col < p.stride_w && !taps_h.empty(); col++) {
      const std::vector<int64_t> taps_w = taps_of_phase(col, p.kernel_w, p.stride_w, p.dilation_w);
      if (taps_w.empty()) continue;
      std::vector<Tap> taps;
      for (const int64_t r : taps_h) {
        for (const int64_t s : taps_w) {
          const int64_t shift_h = plan->rows.segments > 1 ? r * plan->rows.slab_step
                                                          : r * p.dilation_h / p.stride_h;
          const int64_t shift_w = plan->cols.segments > 1 ? s * plan->cols.slab_step
                                                          : s * p.dilation_w / p.stride_w;
          taps.push_back({r * p.kernel_w + s, -(shift_h * plan->slab_cols + shift_w)});
        }
      }
      add_phase(plan, row, col, taps);
    }
  }
}

}  // namespace

int64_t Plan::weight_offset(int64_t result_channel) const {
  if (direction == Direction::kForward) return result_channel * depth * num_taps;
  const int64_t group = result_channel / group_result;
  const int64_t channel = result_channel % group_result;
  return (group * depth * group_result + channel) * num_taps;
}

int64_t Plan::source_channel(int64_t slice, int64_t d, int64_t lane) const {
  if (!lanewise) return slice * depth + d;
  const int64_t result_channel = slice * lanes + lane;
  if (result_channel >= result_channels) return -1;
  return result_channel / group_result * depth + d;
}

Plan make_plan(ta_problem p, Direction direction, int64_t lanes, int64_t element_size) {
  Plan plan{};
  plan.direction = direction;
  plan.lanes = lanes;
  plan.batch = p.batch;
  const int64_t group_in = p.in_channels / p.groups, group_out = p.out_channels / p.groups;
  plan.num_taps = p.kernel_h * p.kernel_w;
  const bool forward = direction == Direction::kForward;
  plan.source_channels = forward ? p.in_channels : p.out_channels;
  plan.source_h = forward ? p.height : p.out_height;
  plan.source_w = forward ? p.width : p.out_width;
  for (int i = 0; i < 4; i++)
    plan.source_strides[i] = forward ? p.input_strides[i] : p.output_strides[i];
  plan.result_channels = forward ? p.out_channels : p.in_channels;
  plan.result_h = forward ? p.out_height : p.height;
  plan.result_w = forward ? p.out_width : p.width;
  plan.depth = forward ? group_in : group_out;
  plan.group_result = forward ? group_out : group_in;
  plan.weight_depth_stride = forward ? plan.num_taps : group_in * plan.num_taps;
  // A single row or column of windows takes no step: any longer stride is the same.
  p.stride_h = p.out_height == 1 ? std::min(p.stride_h, (p.kernel_h - 1) * p.dilation_h + 1)
                                 : p.stride_h;
  p.stride_w = p.out_width == 1 ? std::min(p.stride_w, (p.kernel_w - 1) * p.dilation_w + 1)
                                : p.stride_w;
  plan.stride_h = p.stride_h;
  plan.stride_w = p.stride_w;
  plan.pad_h = p.pad_h;
  plan.pad_w = p.pad_w;
  plan.max_shift_h = (p.kernel_h - 1) * p.dilation_h / p.stride_h;
  plan.max_shift_w = (p.kernel_w - 1) * p.dilation_w / p.stride_w;
  plan.num_rows = plan.num_taps * plan.depth;

  plan.lanewise = p.groups > 1 && plan.group_result < lanes;
  plan.num_slices = plan.lanewise ? ceil_div(plan.result_channels, lanes) : p.groups;
  plan.slice_channels = plan.lanewise ? lanes : plan.group_result;
  plan.slots = plan.depth * (plan.lanewise ? lanes : 1);
  choose_panels(&plan);
  choose_box(&plan, p, kSlabBytes / element_size);

  plan.tap_position.assign(plan.num_taps, -1);
  plan.tap_pixel.assign(plan.num_taps, 0);
  if (forward)
    add_forward_taps(&plan, p);
  else
    add_backward_taps(&plan, p);
  return plan;
}

bool reserve_unit(const Plan& plan, Unit* unit) {
  try {
    unit->base.reserve(static_cast<size_t>(plan.box_pixels()));
    unit->index.reserve(static_cast<size_t>(plan.box_pixels()));
    unit->phase_begin.reserve(plan.phases.size() + 1);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void locate_unit(const Plan& plan, int64_t number, Unit* unit) {
  const int64_t w = number % plan.units_w;
  const int64_t h = number / plan.units_w % plan.units_h;
  const int64_t n = number / plan.units_w / plan.units_h;
  unit->n0 = n * plan.box_n;
  unit->h0 = h * plan.box_h;
  unit->w0 = w * plan.box_w;
  unit->n1 = std::min(unit->n0 + plan.box_n, plan.batch);
  unit->h1 = std::min(unit->h0 + plan.box_h, plan.result_h);
  unit->w1 = std::min(unit->w0 + plan.box_w, plan.result_w);
  const bool forward = plan.direction == Direction::kForward;
  const int64_t sh = plan.stride_h, sw = plan.stride_w;
  unit->row0 = forward ? unit->h0 * sh - plan.pad_h
                       : floor_div(unit->h0 + plan.pad_h, sh) - plan.max_shift_h;
  unit->col0 = forward ? unit->w0 * sw - plan.pad_w
                       : floor_div(unit->w0 + plan.pad_w, sw) - plan.max_shift_w;
  // Backward: the number that stands for row 0 of the slab, were it one piece of the source.
  const int64_t first_h = unit->row0 + plan.max_shift_h - plan.rows.shift;
  const int64_t first_w = unit->col0 + plan.max_shift_w - plan.cols.shift;
  unit->base.clear();
  unit->index.clear();
  unit->phase_begin.clear();

  const int64_t step_h = forward ? 1 : sh, step_w = forward ? 1 : sw;
  const int64_t cols = unit->w1 - unit->w0;
  for (const Phase& phase : plan.phases) {
    unit->phase_begin.push_back(static_cast<int64_t>(unit->base.size()));
    const int64_t start_h = unit->h0 + distance_to(phase.row, unit->h0 + plan.pad_h, step_h);
    const int64_t start_w = unit->w0 + distance_to(phase.col, unit->w0 + plan.pad_w, step_w);
    for (int64_t n = unit->n0; n < unit->n1; n++) {
      const int64_t image = n - unit->n0;
      for (int64_t h = start_h; h < unit->h1; h += step_h) {
        const int64_t row = forward ? (h - unit->h0) * sh : (h + plan.pad_h) / sh - first_h;
        const int64_t slab_row = (image * plan.slab_rows + row) * plan.slab_cols;
        const int64_t box_row = (image * (unit->h1 - unit->h0) + h - unit->h0) * cols;
        for (int64_t w = start_w; w < unit->w1; w += step_w) {
          const int64_t col = forward ? (w - unit->w0) * sw : (w + plan.pad_w) / sw - first_w;
          unit->base.push_back(slab_row + col);
          unit->index.push_back(box_row + w - unit->w0);
        }
      }
    }
  }
  unit->phase_begin.push_back(static_cast<int64_t>(unit->base.size()));
}

}  // namespace torchadder
