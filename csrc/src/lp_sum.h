// Sums of powers over the taps, in both directions: y = bias - sum |x - w|^p and
// gx = sum factor(w - x) gy. They are cut up as plan.h says, packed as pack.h does and summed
// directly, without an identity: a power costs about 25 instructions, so that tiles need not be
// large to hide the loads.
#pragma once

#include "accumulate.h"
#include "lp_power.h"

namespace {

// A gradient has x fixed for each pixel and the gradient from above as its source.
enum class LpTerm { kPower, kGradient, kClippedGradient };

template <class V, LpTerm kTerm, int kPixels, int kVectors, bool kLanewise>
void add_powers(const Power<V>& power, typename V::Reg bound, const Tile<typename V::T>& tile,
                const Run* runs, int64_t num_runs, const typename V::T* w) {
  using T = typename V::T;
  using Reg = typename V::Reg;
  constexpr int64_t step = kLanewise ? V::lanes : 1;
  Reg sum[kPixels][kVectors];
  Reg x[kPixels];
  for (int m = 0; m < kPixels; m++) {
    for (int v = 0; v < kVectors; v++) sum[m][v] = V::zero();
    x[m] = kTerm == LpTerm::kPower ? V::zero() : V::load(tile.x[m]);
  }
  for (int64_t i = 0; i < num_runs; i++) {
    const int64_t length = runs[i].rows * step;
    for (int64_t k = 0; k < length; k += step) {
      for (int m = 0; m < kPixels; m++) {
        const T* source = tile.source[m] + runs[i].offset + k;
        const Reg s = kLanewise ? V::load(source) : V::set1(*source);
        for (int v = 0; v < kVectors; v++) {
          const Reg wv = V::load(w + v * V::lanes);
          if constexpr (kTerm == LpTerm::kPower) {
            sum[m][v] = power.add_power(sum[m][v], V::sub(wv, s));
          } else {
            Reg factor = power.derivative(V::sub(wv, x[m]));
            if constexpr (kTerm == LpTerm::kClippedGradient)
              factor = V::clip1_keep_nan(factor, bound);
            sum[m][v] = V::fma(factor, s, sum[m][v]);
          }
        }
      }
      w += kVectors * V::lanes;
    }
  }
  for (int m = 0; m < kPixels; m++)
    for (int v = 0; v < kVectors; v++) {
      T* at = tile.stage[m] + v * V::lanes;
      V::store(at, V::add(V::load(at), sum[m][v]));
    }
}

template <class V>
class LpSum {
  using T = typename V::T;
  using Reg = typename V::Reg;

 public:
  LpSum(const ta_problem& problem, torchadder::Direction direction, double p, bool clip,
        const void* source, const void* x, const void* w, const void* bias, void* result)
      : plan_(torchadder::make_plan(problem, direction, V::lanes, sizeof(T))),
        power_(p),
        p_(static_cast<T>(p)),
        clip_(clip),
        forward_(direction == torchadder::Direction::kForward),
        x_strides_(problem.input_strides),
        result_strides_(forward_ ? problem.output_strides : problem.result_strides),
        source_(static_cast<const T*>(source)),
        x_(static_cast<const T*>(x)),
        w_(static_cast<const T*>(w)),
        bias_(static_cast<const T*>(bias)),
        result_(static_cast<T*>(result)) {}

  int run(int threads) {
    const int64_t num_panels = static_cast<int64_t>(plan_.panels.size());
    const int64_t places = plan_.num_units() * plan_.num_slices;
    const int64_t chunks = min64(num_panels, max64(1, 8 / places));
    const int64_t panels_per_chunk = (num_panels + chunks - 1) / chunks;
    const int64_t tasks = places * chunks;

    Buffer<T> packed(plan_.num_slices * plan_.slice_weights);
    if (!packed.ok()) return TA_OUT_OF_MEMORY;
    packed_ = packed.data();
    pack_weights<V>(plan_, w_, packed_, threads);

    int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
    {
      Unit unit;
      Buffer<T> slab(plan_.slab_elements());
      Buffer<T> box(forward_ ? 0 : plan_.box_pixels() * V::lanes);
      Buffer<T> stage(plan_.box_pixels() * plan_.panels[0].num_vectors * V::lanes);
      if (!torchadder::reserve_unit(plan_, &unit) || !slab.ok() || !box.ok() || !stage.ok())
        status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++) {
        if (status != TA_OK) continue;
        const int64_t chunk = task % chunks, place = task / chunks;
        const int64_t slice = place % plan_.num_slices;
        torchadder::locate_unit(plan_, place / plan_.num_slices, &unit);
        pack_slab<V>(plan_, unit, slice, source_, slab.data());
        const int64_t end = min64((chunk + 1) * panels_per_chunk, num_panels);
        for (int64_t p = chunk * panels_per_chunk; p < end; p++)
          compute_panel(unit, slice, plan_.panels[p], slab.data(), box.data(), stage.data());
      }
    }
    return status;
  }

 private:
  void compute_panel(const Unit& unit, int64_t slice, const Panel& panel, const T* slab, T* box,
                     T* stage) const {
    const int64_t channels = panel_channels(plan_, slice, panel);
    const int64_t first = slice * plan_.slice_channels + panel.first_lane;
    const int64_t pitch = panel.num_vectors * V::lanes;
    const T* w = packed_ + slice * plan_.slice_weights + panel.weights_offset;
    std::memset(stage, 0, sizeof(T) * unit.num_pixels() * pitch);
    if (forward_) {
      switch (panel.num_vectors) {
        case 1:
          compute<LpTerm::kPower, 4, 1>(unit, w, slab, box, stage);
          break;
        case 2:
          compute<LpTerm::kPower, 2, 2>(unit, w, slab, box, stage);
          break;
        case 3:
          compute<LpTerm::kPower, 1, 3>(unit, w, slab, box, stage);
          break;
        default:
          compute<LpTerm::kPower, 1, 4>(unit, w, slab, box, stage);
      }
      subtract_from_bias(unit.num_pixels(), pitch, first, channels, stage);
    } else {
      pack_box<V>(unit, x_, x_strides_, first, channels, box);
      if (clip_)
        compute<LpTerm::kClippedGradient, 4, 1>(unit, w, slab, box, stage);
      else
        compute<LpTerm::kGradient, 4, 1>(unit, w, slab, box, stage);
      const Reg p = V::set1(p_);
      for (int64_t i = 0; i < unit.num_pixels() * pitch; i += V::lanes)
        V::store(stage + i, product<V>(p, V::load(stage + i)));
    }
    write_box<V>(unit, stage, pitch, first, channels, result_strides_, result_);
  }

  template <LpTerm kTerm, int kPixels, int kVectors>
  void compute(const Unit& unit, const T* w, const T* slab, const T* box, T* stage) const {
    if (plan_.lanewise)
      sum_phases<kTerm, kPixels, kVectors, true>(unit, w, slab, box, stage);
    else
      sum_phases<kTerm, kPixels, kVectors, false>(unit, w, slab, box, stage);
  }

  template <LpTerm kTerm, int kPixels, int kVectors, bool kLanewise>
  void sum_phases(const Unit& unit, const T* w, const T* slab, const T* box, T* stage) const {
    // |p d| <= 1: the factor p is applied to the sum.
    const Reg bound = V::set1(1 / p_);
    const int64_t pitch = kVectors * V::lanes;
    const T* source[kPixels];
    const T* x[kPixels];
    T* sums[kPixels];
    const Tile<T> tile{source, x, sums};
    for (size_t phase = 0; phase < plan_.phases.size(); phase++) {
      const int64_t begin = unit.phase_begin[phase], end = unit.phase_begin[phase + 1];
      for (int64_t b = 0; b < plan_.phases[phase].num_blocks; b++) {
        const Block& block = plan_.blocks[plan_.phases[phase].first_block + b];
        const Run* runs = plan_.runs.data() + block.first_run;
        const T* rows = w + block.first_row * pitch;
        for (int64_t m = begin; m < end;) {
          const int64_t count = end - m >= kPixels ? kPixels : 1;
          for (int64_t i = 0; i < count; i++) {
            source[i] = slab + unit.base[m + i] * plan_.slots;
            x[i] = box + unit.index[m + i] * V::lanes;
            sums[i] = stage + unit.index[m + i] * pitch;
          }
          if (count == kPixels)
            add_powers<V, kTerm, kPixels, kVectors, kLanewise>(power_, bound, tile, runs,
                                                               block.num_runs, rows);
          else
            add_powers<V, kTerm, 1, kVectors, kLanewise>(power_, bound, tile, runs,
                                                         block.num_runs, rows);
          m += count;
        }
      }
    }
  }

  void subtract_from_bias(int64_t pixels, int64_t pitch, int64_t first, int64_t channels,
                          T* stage) const {
    alignas(64) T offset[4 * V::lanes] = {};
    if (bias_) std::memcpy(offset, bias_ + first, sizeof(T) * channels);
    for (int64_t m = 0; m < pixels; m++)
      for (int64_t l = 0; l < pitch; l += V::lanes) {
        T* at = stage + m * pitch + l;
        V::store(at, V::sub(V::load(offset + l), V::load(at)));
      }
  }

  const Plan plan_;
  const Power<V> power_;
  const T p_;
  const bool clip_, forward_;
  const int64_t* const x_strides_;
  const int64_t* const result_strides_;
  const T* source_;
  const T* x_;
  const T* w_;
  const T* bias_;
  T* result_;
  T* packed_ = nullptr;
};

template <class V>
int lp_forward(const ta_problem& problem, double p, const void* x, const void* w, const void* bias,
               void* y, int threads) {
  return LpSum<V>(problem, torchadder::Direction::kForward, p, false, x, nullptr, w, bias, y)
      .run(threads);
}

template <class V>
int lp_backward_input(const ta_problem& problem, double p, bool clip, const void* gy,
                      const void* x, const void* w, void* gx, int threads) {
  return LpSum<V>(problem, torchadder::Direction::kBackwardInput, p, clip, gy, x, w, nullptr, gx)
      .run(threads);
}

}  // namespace
