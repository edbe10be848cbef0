// How one call is cut into pieces: which result pixels a unit of work computes, which stretch of
// memory ("slab") it copies, in which order the taps are summed. Numbers only: no data, no vectors.
//
// Both directions are the same machine. The result has pixels and channels; every result value is a
// sum over taps and over the channels of a *source*:
//   forward:         result y (P x Q, O channels), source x (H x W, C channels);
//   input gradient:  result gx (H x W, C channels), source gy (P x Q, O channels).
// Result channels lie in vector lanes. In a dense plan all lanes of a vector belong to one group and
// share the source value, which is broadcast. In a lanewise plan (depthwise and other groups smaller
// than a vector) each lane has its own source value.
#pragma once

#include <cstdint>
#include <vector>

#include "torchadder.h"

namespace torchadder {

enum class Direction { kForward, kBackwardInput };

// A stretch of the slab that is contiguous in the order of summation.
struct Run {
  int64_t offset;  // from the pixel's base, in slab elements
  int64_t rows;    // reduction steps
};

// Runs that are summed in registers before they are added to the stage: bounds both the packed
// weights in cache and the length of a chain of roundings.
struct Block {
  int64_t first_run, num_runs;
  int64_t first_row;  // of the packed weights
};

// Result pixels that see the same taps: one phase forward; backward, those of the stride_h x stride_w
// phases that see any. Its rows h are those with (h + pad_h) % stride_h == row, likewise columns.
struct Phase {
  int64_t row, col;
  int64_t first_block, num_blocks;
};

struct Panel {
  int64_t first_lane;      // within the slice
  int64_t num_vectors;
  int64_t weights_offset;  // within the slice's packed weights, in elements
};

// One direction (rows or columns) of the slab. Windows that are wider than the pixels of a unit leave
// out what lies between their taps: the slab holds `segments` stretches of the source, `source_step`
// apart there and `slab_step` here. Where stretches would overlap, the two steps are equal and the slab
// is one piece of the source.
struct Axis {
  int64_t segments, source_step, slab_step;
  int64_t size;   // slab rows or columns
  int64_t shift;  // backward: from a unit's first pixel up to its base

  int64_t segment(int64_t at) const { return at / slab_step < segments ? at / slab_step : segments - 1; }
  // Source row or column of slab row or column `at`, relative to that of 0.
  int64_t source(int64_t at) const { return at + segment(at) * (source_step - slab_step); }
};

struct Plan {
  Direction direction;
  int64_t lanes;
  bool lanewise;

  int64_t source_channels, source_h, source_w, source_strides[4];
  int64_t result_channels, result_h, result_w, batch;
  int64_t depth;                // source channels of a group
  int64_t group_result;         // result channels of a group
  int64_t num_slices;           // groups, or vectors of lanes in a lanewise plan
  int64_t slice_channels;       // result channels of a slice (the last lanewise one may have fewer)
  int64_t slots;                // slab elements of a pixel

  int64_t box_n, box_h, box_w;  // result pixels of a unit
  int64_t units_n, units_h, units_w;
  int64_t slab_rows, slab_cols;
  Axis rows, cols;

  int64_t num_taps, num_rows;         // num_rows = taps * depth
  std::vector<int64_t> tap_position;  // of tap r * S + s in the order of summation
  std::vector<int64_t> tap_pixel;     // its slab pixel relative to the base, same index
  std::vector<Run> runs;
  std::vector<Block> blocks;
  std::vector<Phase> phases;
  std::vector<Panel> panels;
  int64_t slice_weights;  // packed weights of a slice, in elements

  int64_t stride_h, stride_w, pad_h, pad_w, max_shift_h, max_shift_w;
  int64_t weight_depth_stride;  // step of the weight tensor from one depth to the next

  int64_t num_units() const { return units_n * units_h * units_w; }
  int64_t box_pixels() const { return box_n * box_h * box_w; }
  int64_t slab_elements() const { return box_n * slab_rows * slab_cols * slots; }

  // Where the filter of a result channel starts in the weight tensor.
  int64_t weight_offset(int64_t result_channel) const;
  // Source channel behind (depth, lane) of a slice, or -1 for a lane that pads.
  int64_t source_channel(int64_t slice, int64_t d, int64_t lane) const;
};

Plan make_plan(ta_problem problem, Direction direction, int64_t lanes, int64_t element_size);

// The result pixels of one unit, listed by phase; backward, those that see no tap are not listed.
struct Unit {
  int64_t n0, n1, h0, h1, w0, w1;
  int64_t row0, col0;                // source pixel of slab (0, 0)
  std::vector<int64_t> base;         // slab pixel of each listed pixel
  std::vector<int64_t> index;        // its place in the box, row-major
  std::vector<int64_t> phase_begin;  // first listed pixel of each phase, and the end

  int64_t num_pixels() const { return (n1 - n0) * (h1 - h0) * (w1 - w0); }
};

// Reserves what any unit of the plan needs; false where the memory is not to be had.
bool reserve_unit(const Plan& plan, Unit* unit);

// Fills `unit` with unit number `number`. Throws nothing once memory is reserved.
void locate_unit(const Plan& plan, int64_t number, Unit* unit);

}  // namespace torchadder
