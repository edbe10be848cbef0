// How an integer convolution is cut up. Numbers only, the same for every instruction set.
//
// A sum runs over *runs*: stretches of bytes that are contiguous in the image (or in the copy of it,
// the slab). A run is read eight bytes, a *step*, at a time; the last step of a run may be shorter and
// is masked. The filters are packed in the same order, eight bytes a step and filter.
#pragma once

#include <cstdint>
#include <vector>

#include "torchadder_int8.h"

namespace torchadder::int8 {

constexpr int64_t kStepBytes = 8;
constexpr int64_t kBlock = 8;  // filters that lie together in a step

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Run {
  int64_t offset;     // from the first byte of a pixel's window
  int64_t full_steps;
  int tail_bytes;     // of the last step, 0 for none
};

// What depends on the layer alone: not on the batch or the size of the images.
struct Layer {
  bool depthwise;          // one input and one output channel a group: lanes are channels
  bool joined;             // the columns of a window row are one run
  int64_t depth;           // input channels of a group
  int64_t group_filters;   // output channels of a group
  int64_t run_bytes;       // of the image, in a run
  int64_t runs_per_row;    // of a window
  int64_t num_blocks;      // of a group, the last one may be partly empty
  int64_t num_steps;       // of a filter
  int64_t group_packed;    // bytes of a group's packed filters
};

struct Plan : Layer {
  ta_int8_problem problem;
  bool in_place;           // windows are read from the image itself

  int64_t unit_rows, units_per_image;  // output rows of a unit of work
  int64_t slab_rows, slab_cols;        // input pixels that a unit reads
  int64_t pixel_bytes, row_bytes;      // of the slab, or of the image
  std::vector<Run> runs;

  int64_t slab_bytes() const { return slab_rows * row_bytes + kStepBytes; }
};

Plan make_plan(const ta_int8_problem& problem);

int64_t packed_size(const ta_int8_problem& problem);
void pack(const ta_int8_problem& problem, const uint8_t* w, uint8_t* packed);

}  // namespace torchadder::int8
