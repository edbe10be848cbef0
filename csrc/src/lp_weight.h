// gw = sum over images and positions of factor(x - w) gy. Filters lie in lanes, a few rows of the
// packed filter in registers; the pixels of a unit stream by. A task owns some rows of some filters
// for the whole batch, so the order of summation does not depend on the number of threads.
#pragma once

#include <vector>

#include "accumulate.h"
#include "lp_power.h"

namespace {

template <class V>
class LpWeight {
  using T = typename V::T;
  using Reg = typename V::Reg;
  static constexpr int kRows = 4;
  // A task copies the whole input once; this many rows pay for it.
  static constexpr int64_t kTaskRows = 48;

  // Rows that follow one another in the slab, at most kRows.
  struct Piece {
    int64_t offset, row, rows;
  };

 public:
  LpWeight(const ta_problem& problem, double p, const void* gy, const void* x, const void* w,
           void* gw)
      : plan_(torchadder::make_plan(problem, torchadder::Direction::kForward, V::lanes, sizeof(T))),
        problem_(problem),
        power_(p),
        p_(static_cast<T>(p)),
        gy_(static_cast<const T*>(gy)),
        x_(static_cast<const T*>(x)),
        w_(static_cast<const T*>(w)),
        gw_(static_cast<T*>(gw)) {
    cut_rows();
  }

  int run(int threads) {
    const int64_t vectors = (plan_.slice_channels + V::lanes - 1) / V::lanes;
    const int64_t num_shares = static_cast<int64_t>(shares_.size()) - 1;
    const int64_t tasks = plan_.num_slices * vectors * num_shares;

    int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
    {
      Unit unit;
      Buffer<T> slab(plan_.slab_elements());
      Buffer<T> box(plan_.box_pixels() * V::lanes);
      Buffer<T> filters(plan_.num_rows * V::lanes);
      Buffer<T> sums(plan_.num_rows * V::lanes);
      if (!torchadder::reserve_unit(plan_, &unit) || !slab.ok() || !box.ok() || !filters.ok() || !sums.ok())
        status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++) {
        if (status != TA_OK) continue;
        const int64_t share = task % num_shares;
        const int64_t vector = task / num_shares % vectors;
        const int64_t slice = task / num_shares / vectors;
        const int64_t first = slice * plan_.slice_channels + vector * V::lanes;
        const int64_t slice_end =
            min64((slice + 1) * plan_.slice_channels, plan_.result_channels);
        const int64_t channels = min64(V::lanes, slice_end - first);
        const Piece* begin = pieces_.data() + shares_[share];
        const Piece* end = pieces_.data() + shares_[share + 1];
        pack_filters<V>(plan_, w_, first, channels, V::lanes, filters.data());
        std::memset(sums.data(), 0, sizeof(T) * plan_.num_rows * V::lanes);
        for (int64_t u = 0; u < plan_.num_units(); u++) {
          torchadder::locate_unit(plan_, u, &unit);
          pack_slab<V>(plan_, unit, slice, x_, slab.data());
          pack_box<V>(unit, gy_, problem_.output_strides, first, channels, box.data());
          for (const Piece* piece = begin; piece != end; piece++) {
            if (plan_.lanewise)
              add_piece<true>(unit, *piece, slab.data(), box.data(), filters.data(), sums.data());
            else
              add_piece<false>(unit, *piece, slab.data(), box.data(), filters.data(), sums.data());
          }
        }
        scatter(begin->row, end[-1].row + end[-1].rows, first, channels, sums.data());
      }
    }
    return status;
  }

 private:
  // Cuts the runs into pieces and the pieces into the shares of tasks.
  void cut_rows() {
    const int64_t step = plan_.lanewise ? V::lanes : 1;
    int64_t rows_in_share = kTaskRows;
    for (const Block& block : plan_.blocks) {
      int64_t row = block.first_row;
      for (int64_t i = 0; i < block.num_runs; i++) {
        const Run& run = plan_.runs[block.first_run + i];
        for (int64_t k = 0; k < run.rows;) {
          if (rows_in_share >= kTaskRows) {
            shares_.push_back(static_cast<int64_t>(pieces_.size()));
            rows_in_share = 0;
          }
          const int64_t rows = run.rows - k >= kRows ? kRows : 1;
          pieces_.push_back({run.offset + k * step, row, rows});
          rows_in_share += rows;
          row += rows;
          k += rows;
        }
      }
    }
    shares_.push_back(static_cast<int64_t>(pieces_.size()));
  }

  template <bool kLanewise>
  void add_piece(const Unit& unit, const Piece& piece, const T* slab, const T* box,
                 const T* filters, T* sums) const {
    const T* w = filters + piece.row * V::lanes;
    T* at = sums + piece.row * V::lanes;
    if (piece.rows == kRows)
      add_rows<kRows, kLanewise>(unit, slab + piece.offset, box, w, at);
    else
      add_rows<1, kLanewise>(unit, slab + piece.offset, box, w, at);
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
        sum[j] = V::fma(power_.derivative(V::sub(value, wv[j])), g, sum[j]);
      }
    }
    for (int j = 0; j < kCount; j++) {
      T* total = at + j * V::lanes;
      V::store(total, V::add(V::load(total), sum[j]));
    }
  }

  // Writes rows begin..end of the sums, times p, to the filters first... of the result.
  void scatter(int64_t begin, int64_t end, int64_t first, int64_t channels, const T* sums) const {
    for (int64_t tap = 0; tap < plan_.num_taps; tap++) {
      for (int64_t d = 0; d < plan_.depth; d++) {
        const int64_t row = plan_.tap_position[tap] * plan_.depth + d;
        if (row < begin || row >= end) continue;
        for (int64_t l = 0; l < channels; l++)
          gw_[plan_.weight_offset(first + l) + d * plan_.weight_depth_stride + tap] =
              p_ * sums[row * V::lanes + l];
      }
    }
  }

  const Plan plan_;
  const ta_problem& problem_;
  const Power<V> power_;
  const T p_;
  const T* gy_;
  const T* x_;
  const T* w_;
  T* gw_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> shares_;  // first piece of each share, and the end
};

template <class V>
int lp_backward_weight(const ta_problem& problem, double p, const void* gy, const void* x,
                       const void* w, void* gw, int threads) {
  return LpWeight<V>(problem, p, gy, x, w, gw).run(threads);
}

}  // namespace
