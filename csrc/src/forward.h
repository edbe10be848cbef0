// y = bias - sum |x - w|.
//
// The fast sum uses |x - w| = 2 max(x, w) - x - w: only max is summed per pair, the sums of x (a
// patch) and of w (a filter) are taken once. Its rounding error is a number of eps (README.md counts
// them) times sum (|x| + |w|), which matters only where the distance is small against that sum. A tile
// in which any distance is below kCancellation times it (or is no finite number: infinities, overflow)
// is summed again directly, so the error is always at most 1 / kCancellation times that number of eps
// times the distance.
#pragma once

#include <limits>

#include "accumulate.h"

namespace {

constexpr double kCancellation = 0.125;
// The sums over patches pay off from here on.
constexpr int64_t kFastDepth = 16;

template <class V>
class Forward {
  using T = typename V::T;
  using Reg = typename V::Reg;

 public:
  Forward(const ta_problem& problem, const void* x, const void* w, const void* bias, void* y)
      : plan_(torchadder::make_plan(problem, torchadder::Direction::kForward, V::lanes, sizeof(T))),
        problem_(problem),
        x_(static_cast<const T*>(x)),
        w_(static_cast<const T*>(w)),
        bias_(static_cast<const T*>(bias)),
        y_(static_cast<T*>(y)),
        fast_(!plan_.lanewise && plan_.depth >= kFastDepth && plan_.slice_channels > V::lanes) {}

  int run(int threads) {
    const int64_t num_panels = static_cast<int64_t>(plan_.panels.size());
    const int64_t places = plan_.num_units() * plan_.num_slices;
    const int64_t chunks = min64(num_panels, max64(1, 8 / places));
    const int64_t panels_per_chunk = (num_panels + chunks - 1) / chunks;
    const int64_t tasks = places * chunks;

    Buffer<T> packed(plan_.num_slices * plan_.slice_weights);
    Buffer<T> filter_sums(fast_ ? 2 * plan_.num_slices * padded_lanes() : 0);
    if (!packed.ok() || !filter_sums.ok()) return TA_OUT_OF_MEMORY;
    packed_ = packed.data();
    filter_sums_ = filter_sums.data();
    pack_weights<V>(plan_, w_, packed_, threads);
    if (fast_) sum_filters(threads);

    int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
    {
      Unit unit;
      Buffer<T> slab(plan_.slab_elements());
      Buffer<T> stage(plan_.box_pixels() * plan_.panels[0].num_vectors * V::lanes);
      Buffer<T> pixel_sums(fast_ ? 2 * (plan_.slab_elements() / plan_.slots + plan_.box_pixels())
                                 : 0);
      if (!torchadder::reserve_unit(plan_, &unit) || !slab.ok() || !stage.ok() || !pixel_sums.ok())
        status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++) {
        if (status != TA_OK) continue;
        const int64_t chunk = task % chunks, place = task / chunks;
        const int64_t slice = place % plan_.num_slices;
        torchadder::locate_unit(plan_, place / plan_.num_slices, &unit);
        pack_slab<V>(plan_, unit, slice, x_, slab.data());
        if (fast_) sum_patches(unit, slab.data(), pixel_sums.data());
        const int64_t end = min64((chunk + 1) * panels_per_chunk, num_panels);
        for (int64_t p = chunk * panels_per_chunk; p < end; p++)
          compute_panel(unit, slice, plan_.panels[p], slab.data(), pixel_sums.data(),
                        stage.data());
      }
    }
    return status;
  }

 private:
  int64_t padded_lanes() const {
    const Panel& last = plan_.panels[plan_.panels.size() - 1];
    return last.first_lane + last.num_vectors * V::lanes;
  }

  // Sum of w and of |w| over each packed filter, block by block.
  void sum_filters(int threads) {
    const int64_t num_panels = static_cast<int64_t>(plan_.panels.size());
    const int64_t jobs = plan_.num_slices * num_panels;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t job = 0; job < jobs; job++) {
      const int64_t slice = job / num_panels;
      const Panel& panel = plan_.panels[job % num_panels];
      const T* w = packed_ + slice * plan_.slice_weights + panel.weights_offset;
      T* sums = filter_sums_ + 2 * slice * padded_lanes();
      const int64_t pitch = panel.num_vectors * V::lanes;
      for (int64_t v = 0; v < panel.num_vectors; v++) {
        Reg total = V::zero(), total_abs = V::zero();
        for (int64_t first = 0; first < plan_.num_rows; first += 512) {
          Reg part = V::zero(), part_abs = V::zero();
          const int64_t end = min64(first + 512, plan_.num_rows);
          for (int64_t row = first; row < end; row++) {
            const Reg value = V::load(w + row * pitch + v * V::lanes);
            part = V::add(part, value);
            part_abs = V::add(part_abs, V::abs(value));
          }
          total = V::add(total, part);
          total_abs = V::add(total_abs, part_abs);
        }
        T* at = sums + panel.first_lane + v * V::lanes;
        V::store(at, total);
        V::store(at + padded_lanes(), total_abs);
      }
    }
  }

  // Sum of x and of |x| over the patch of each pixel: patch[m], patch[num_pixels + m].
  void sum_patches(const Unit& unit, const T* slab, T* sums) const {
    const int64_t depth = plan_.depth;
    const int64_t slab_pixels = (unit.n1 - unit.n0) * plan_.slab_rows * plan_.slab_cols;
    T* patch = sums;
    T* channel = sums + 2 * plan_.box_pixels();
    T* channel_abs = channel + slab_pixels;
    for (int64_t i = 0; i < slab_pixels; i++) {
      const T* at = slab + i * depth;
      Reg part = V::zero(), part_abs = V::zero();
      int64_t d = 0;
      for (; d + V::lanes <= depth; d += V::lanes) {
        const Reg value = V::load(at + d);
        part = V::add(part, value);
        part_abs = V::add(part_abs, V::abs(value));
      }
      T lanes[V::lanes], lanes_abs[V::lanes];
      V::store(lanes, part);
      V::store(lanes_abs, part_abs);
      T total = 0, total_abs = 0;
      for (int64_t l = 0; l < V::lanes; l++) {
        total += lanes[l];
        total_abs += lanes_abs[l];
      }
      for (; d < depth; d++) {
        total += at[d];
        total_abs += at[d] < 0 ? -at[d] : at[d];
      }
      channel[i] = total;
      channel_abs[i] = total_abs;
    }
    const int64_t pixels = unit.num_pixels();
    for (int64_t m = 0; m < pixels; m++) {
      T total = 0, total_abs = 0;
      for (int64_t tap = 0; tap < plan_.num_taps; tap++) {
        const int64_t i = unit.base[m] + plan_.tap_pixel[tap];
        total += channel[i];
        total_abs += channel_abs[i];
      }
      patch[m] = total;
      patch[plan_.box_pixels() + m] = total_abs;
    }
  }

  void compute_panel(const Unit& unit, int64_t slice, const Panel& panel, const T* slab,
                     const T* patch, T* stage) const {
    switch (panel.num_vectors) {
      case 1:
        if (plan_.lanewise)
          compute<1, true>(unit, slice, panel, slab, patch, stage);
        else
          compute<1, false>(unit, slice, panel, slab, patch, stage);
        break;
      case 2:
        compute<2, false>(unit, slice, panel, slab, patch, stage);
        break;
      case 3:
        compute<3, false>(unit, slice, panel, slab, patch, stage);
        break;
      default:
        compute<4, false>(unit, slice, panel, slab, patch, stage);
    }
  }

  template <Term kTerm, int kVectors, bool kLanewise>
  void sum_block(const Unit& unit, const Block& block, const T* w, const T* slab, T* stage,
                 int64_t first_pixel, int64_t end_pixel) const {
    constexpr int kMost = tile_pixels<V>(kVectors);
    const T* source[kMost];
    T* sums[kMost];
    for (int64_t m = first_pixel; m < end_pixel; m += kMost) {
      const int count = static_cast<int>(min64(kMost, end_pixel - m));
      for (int i = 0; i < count; i++) {
        source[i] = slab + unit.base[m + i] * plan_.slots;
        sums[i] = stage + (m + i) * kVectors * V::lanes;
      }
      accumulate_tile<V, kTerm, kVectors, kLanewise>({source, nullptr, sums}, count,
                                                     plan_.runs.data() + block.first_run,
                                                     block.num_runs,
                                                     w + block.first_row * kVectors * V::lanes);
    }
  }

  template <int kVectors, bool kLanewise>
  void compute(const Unit& unit, int64_t slice, const Panel& panel, const T* slab, const T* patch,
               T* stage) const {
    constexpr bool kCanBeFast = kVectors > 1;
    const int64_t pixels = unit.num_pixels(), pitch = kVectors * V::lanes;
    const T* w = packed_ + slice * plan_.slice_weights + panel.weights_offset;
    std::memset(stage, 0, sizeof(T) * pixels * pitch);
    const bool fast = fast_ && kCanBeFast;
    for (const Block& block : plan_.blocks) {
      if (fast)
        sum_block<kCanBeFast ? Term::kMax : Term::kAbs, kVectors, kLanewise>(
            unit, block, w, slab, stage, 0, pixels);
      else
        sum_block<Term::kAbs, kVectors, kLanewise>(unit, block, w, slab, stage, 0, pixels);
    }
    if (fast) {
      const T* filters = filter_sums_ + 2 * slice * padded_lanes() + panel.first_lane;
      constexpr int kMost = tile_pixels<V>(kVectors);
      for (int64_t m = 0; m < pixels; m += kMost) {
        const int64_t end = min64(m + kMost, pixels);
        if (finish_fast<kVectors>(m, end, patch, filters, stage)) continue;
        std::memset(stage + m * pitch, 0, sizeof(T) * (end - m) * pitch);
        for (const Block& block : plan_.blocks)
          sum_block<Term::kAbs, kVectors, kLanewise>(unit, block, w, slab, stage, m, end);
      }
    }
    const int64_t channels = panel_channels(plan_, slice, panel);
    const int64_t first = slice * plan_.slice_channels + panel.first_lane;
    alignas(64) T offset[pitch_most] = {};
    if (bias_) std::memcpy(offset, bias_ + first, sizeof(T) * channels);
    for (int64_t m = 0; m < pixels; m++)
      for (int v = 0; v < kVectors; v++) {
        T* at = stage + m * pitch + v * V::lanes;
        V::store(at, V::sub(V::load(offset + v * V::lanes), V::load(at)));
      }
    write_box<V>(unit, stage, pitch, first, channels, problem_.output_strides, y_);
  }

  // Turns sums of maxima into distances; false when one of them may have lost too many digits.
  template <int kVectors>
  bool finish_fast(int64_t first, int64_t end, const T* patch, const T* filters, T* stage) const {
    const Reg two = V::set1(2), threshold = V::set1(T(kCancellation));
    const Reg largest = V::set1(std::numeric_limits<T>::max());
    const T* patch_abs = patch + plan_.box_pixels();
    const T* filters_abs = filters + padded_lanes();
    bool ok = true;
    for (int64_t m = first; m < end; m++) {
      const Reg x = V::set1(patch[m]), x_abs = V::set1(patch_abs[m]);
      for (int v = 0; v < kVectors; v++) {
        T* at = stage + m * kVectors * V::lanes + v * V::lanes;
        const Reg rest = V::add(x, V::load(filters + v * V::lanes));
        const Reg distance = V::fma(two, V::load(at), V::sub(V::zero(), rest));
        const Reg size = V::add(x_abs, V::load(filters_abs + v * V::lanes));
        // V::fma(size, threshold, 0) is a product; the lanes of filters that pad are never small:
        // their distance is the patch's own sum of |x|.
        ok &= V::all_ge(distance, V::fma(size, threshold, V::zero())) & V::all_ge(largest, distance);
        V::store(at, distance);
      }
    }
    return ok;
  }

  static constexpr int64_t pitch_most = 4 * V::lanes;

  const Plan plan_;
  const ta_problem& problem_;
  const T* x_;
  const T* w_;
  const T* bias_;
  T* y_;
  const bool fast_;
  T* packed_ = nullptr;
  T* filter_sums_ = nullptr;
};

template <class V>
int forward(const ta_problem& problem, const void* x, const void* w, const void* bias, void* y,
            int threads) {
  return Forward<V>(problem, x, w, bias, y).run(threads);
}

}  // namespace
