// gw = sum over images and positions of sign(x - w) gy: the weight gradient of the rule "exact", the
// one that no convolution gives. Filters lie in lanes, a few rows of the packed filter in registers;
// the pixels of a unit stream by. A task owns some rows of some filters for the whole batch, so the
// order of summation does not depend on the number of threads.
#pragma once

#include "accumulate.h"

namespace {

template <class V>
class BackwardWeightSign {
  using T = typename V::T;
  using Reg = typename V::Reg;
  static constexpr int kRows = 8;

 public:
  BackwardWeightSign(const ta_problem& problem, const void* gy, const void* x, const void* w,
                     void* gw)
      : plan_(torchadder::make_plan(problem, torchadder::Direction::kForward, V::lanes, sizeof(T))),
        problem_(problem),
        gy_(static_cast<const T*>(gy)),
        x_(static_cast<const T*>(x)),
        w_(static_cast<const T*>(w)),
        gw_(static_cast<T*>(gw)) {}

  int run(int threads) {
    const int64_t vectors = (plan_.slice_channels + V::lanes - 1) / V::lanes;
    const int64_t num_blocks = static_cast<int64_t>(plan_.blocks.size());
    const int64_t tasks = plan_.num_slices * vectors * num_blocks;
    int64_t block_rows = 0;
    for (const Block& block : plan_.blocks) block_rows = max64(block_rows, rows_of(block));

    int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
    {
      Unit unit;
      Buffer<T> slab(plan_.slab_elements());
      Buffer<T> box(plan_.box_pixels() * V::lanes);
      Buffer<T> filters(plan_.num_rows * V::lanes);
      Buffer<T> sums(block_rows * V::lanes);
      if (!torchadder::reserve_unit(plan_, &unit) || !slab.ok() || !box.ok() || !filters.ok() || !sums.ok())
        status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++) {
        if (status != TA_OK) continue;
        const Block& block = plan_.blocks[task % num_blocks];
        const int64_t vector = task / num_blocks % vectors;
        const int64_t slice = task / num_blocks / vectors;
        const int64_t first = slice * plan_.slice_channels + vector * V::lanes;
        const int64_t slice_end =
            min64((slice + 1) * plan_.slice_channels, plan_.result_channels);
        const int64_t channels = min64(V::lanes, slice_end - first);
        pack_filters<V>(plan_, w_, first, channels, V::lanes, filters.data());
        std::memset(sums.data(), 0, sizeof(T) * rows_of(block) * V::lanes);
        for (int64_t u = 0; u < plan_.num_units(); u++) {
          torchadder::locate_unit(plan_, u, &unit);
          pack_slab<V>(plan_, unit, slice, x_, slab.data());
          pack_box<V>(unit, gy_, problem_.output_strides, first, channels, box.data());
          if (plan_.lanewise)
            add_unit<true>(unit, block, slab.data(), box.data(), filters.data(), sums.data());
          else
            add_unit<false>(unit, block, slab.data(), box.data(), filters.data(), sums.data());
        }
        scatter(block, first, channels, sums.data());
      }
    }
    return status;
  }

 private:
  int64_t rows_of(const Block& block) const {
    int64_t rows = 0;
    for (int64_t i = 0; i < block.num_runs; i++) rows += plan_.runs[block.first_run + i].rows;
    return rows;
  }

  template <bool kLanewise>
  void add_unit(const Unit& unit, const Block& block, const T* slab, const T* box,
                const T* filters, T* sums) const {
    constexpr int64_t step = kLanewise ? V::lanes : 1;
    int64_t row = 0;
    for (int64_t i = 0; i < block.num_runs; i++) {
      const Run& run = plan_.runs[block.first_run + i];
      for (int64_t k = 0; k < run.rows;) {
        const T* source = slab + run.offset + k * step;
        const T* w = filters + (block.first_row + row) * V::lanes;
        T* at = sums + row * V::lanes;
        const int64_t done = run.rows - k >= kRows ? kRows : 1;
        if (done == kRows)
          add_rows<kRows, kLanewise>(unit, source, box, w, at);
        else
          add_rows<1, kLanewise>(unit, source, box, w, at);
        k += done;
        row += done;
      }
    }
  }

  template <int kCount, bool kLanewise>
  void add_rows(const Unit& unit, const T* source, const T* box, const T* w, T* at) const {
    constexpr int64_t step = kLanewise ? V::lanes : 1;
    Reg sum[kCount], wv[kCount];
    for (int j = 0; j < kCount; j++) {
      sum[j] = V::zero();
      wv[j] = V::load(w + j * V::lanes);
    }
    const int64_t pixels = unit.num_pixels();
    for (int64_t m = 0; m < pixels; m++) {
      const T* x = source + unit.base[m] * plan_.slots;
      const Reg g = V::load(box + m * V::lanes);
      for (int j = 0; j < kCount; j++) {
        const Reg value = kLanewise ? V::load(x + j * step) : V::set1(x[j]);
        sum[j] = V::fma(V::sign(V::sub(value, wv[j])), g, sum[j]);
      }
    }
    for (int j = 0; j < kCount; j++) V::store(at + j * V::lanes, V::add(V::load(at + j * V::lanes), sum[j]));
  }

  void scatter(const Block& block, int64_t first, int64_t channels, const T* sums) const {
    const int64_t begin = block.first_row, end = begin + rows_of(block);
    for (int64_t tap = 0; tap < plan_.num_taps; tap++) {
      const int64_t tap_row = plan_.tap_position[tap] * plan_.depth;
      for (int64_t d = 0; d < plan_.depth; d++) {
        const int64_t row = tap_row + d;
        if (row < begin || row >= end) continue;
        for (int64_t l = 0; l < channels; l++)
          gw_[plan_.weight_offset(first + l) + d * plan_.weight_depth_stride + tap] =
              sums[(row - begin) * V::lanes + l];
      }
    }
  }

  const Plan plan_;
  const ta_problem& problem_;
  const T* gy_;
  const T* x_;
  const T* w_;
  T* gw_;
};

template <class V>
int backward_weight_sign(const ta_problem& problem, const void* gy, const void* x, const void* w,
                         void* gw, int threads) {
  return BackwardWeightSign<V>(problem, gy, x, w, gw).run(threads);
}

}  // namespace
