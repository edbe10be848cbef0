// gx = sum over taps and outputs of factor(w - x) gy, for the three factors of ta_rule.
//
// Summed directly, no identity: where NaN may reach a clamp that would swallow it (from NaN, or from
// infinity minus infinity), a clamp that lets it through takes over for that unit (x) or for the whole
// call (w).
#pragma once

#include "accumulate.h"

namespace {

template <class V>
class BackwardInput {
  using T = typename V::T;

 public:
  BackwardInput(const ta_problem& problem, int rule, const void* gy, const void* x, const void* w,
                void* gx)
      : plan_(torchadder::make_plan(problem, torchadder::Direction::kBackwardInput, V::lanes,
                                    sizeof(T))),
        problem_(problem),
        rule_(rule),
        gy_(static_cast<const T*>(gy)),
        x_(static_cast<const T*>(x)),
        w_(static_cast<const T*>(w)),
        gx_(static_cast<T*>(gx)) {}

  int run(int threads) {
    const int64_t num_panels = static_cast<int64_t>(plan_.panels.size());
    const int64_t places = plan_.num_units() * plan_.num_slices;
    const int64_t chunks = min64(num_panels, max64(1, 8 / places));
    const int64_t panels_per_chunk = (num_panels + chunks - 1) / chunks;
    const int64_t tasks = places * chunks;

    const int64_t num_weights = plan_.num_slices * plan_.slice_weights;
    Buffer<T> packed(num_weights);
    if (!packed.ok()) return TA_OUT_OF_MEMORY;
    packed_ = packed.data();
    pack_weights<V>(plan_, w_, packed_, threads);
    weights_not_finite_ = any_not_finite(packed_, num_weights);

    int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
    {
      Unit unit;
      Buffer<T> slab(plan_.slab_elements());
      Buffer<T> box(plan_.box_pixels() * V::lanes);
      Buffer<T> stage(plan_.box_pixels() * V::lanes);
      if (!torchadder::reserve_unit(plan_, &unit) || !slab.ok() || !box.ok() || !stage.ok())
        status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; task++) {
        if (status != TA_OK) continue;
        const int64_t chunk = task % chunks, place = task / chunks;
        const int64_t slice = place % plan_.num_slices;
        torchadder::locate_unit(plan_, place / plan_.num_slices, &unit);
        pack_slab<V>(plan_, unit, slice, gy_, slab.data());
        const int64_t end = min64((chunk + 1) * panels_per_chunk, num_panels);
        for (int64_t p = chunk * panels_per_chunk; p < end; p++)
          compute_panel(unit, slice, plan_.panels[p], slab.data(), box.data(), stage.data());
      }
    }
    return status;
  }

 private:
  // The difference of a value and itself is NaN where it is NaN or infinite.
  static bool any_not_finite(const T* values, int64_t count) {
    bool any = false;
    int64_t i = 0;
    for (; i + V::lanes <= count; i += V::lanes) {
      const typename V::Reg value = V::load(values + i);
      any |= V::any_nan(V::sub(value, value));
    }
    for (; i < count; i++) any |= !(values[i] - values[i] == 0);
    return any;
  }

  void compute_panel(const Unit& unit, int64_t slice, const Panel& panel, const T* slab, T* box,
                     T* stage) const {
    const int64_t channels = panel_channels(plan_, slice, panel);
    const int64_t first = slice * plan_.slice_channels + panel.first_lane;
    const int64_t elements = unit.num_pixels() * V::lanes;
    pack_box<V>(unit, x_, problem_.input_strides, first, channels, box);
    std::memset(stage, 0, sizeof(T) * elements);
    const T* w = packed_ + slice * plan_.slice_weights + panel.weights_offset;
    if (rule_ == TA_RULE_SIGN)
      compute<Term::kSign>(unit, w, slab, box, stage);
    else if (rule_ == TA_RULE_L2)
      compute<Term::kL2>(unit, w, slab, box, stage);
    else if (weights_not_finite_ || any_not_finite(box, elements))
      compute<Term::kClipKeepNan>(unit, w, slab, box, stage);
    else
      compute<Term::kClip>(unit, w, slab, box, stage);
    write_box<V>(unit, stage, V::lanes, first, channels, problem_.result_strides, gx_);
  }

  template <Term kTerm>
  void compute(const Unit& unit, const T* w, const T* slab, const T* box, T* stage) const {
    if (plan_.lanewise)
      compute<kTerm, true>(unit, w, slab, box, stage);
    else
      compute<kTerm, false>(unit, w, slab, box, stage);
  }

  template <Term kTerm, bool kLanewise>
  void compute(const Unit& unit, const T* w, const T* slab, const T* box, T* stage) const {
    constexpr int kMost = tile_pixels<V>(1);
    const T* source[kMost];
    const T* x[kMost];
    T* sums[kMost];
    for (size_t phase = 0; phase < plan_.phases.size(); phase++) {
      const int64_t begin = unit.phase_begin[phase], end = unit.phase_begin[phase + 1];
      for (int64_t b = 0; b < plan_.phases[phase].num_blocks; b++) {
        const Block& block = plan_.blocks[plan_.phases[phase].first_block + b];
        for (int64_t m = begin; m < end; m += kMost) {
          const int count = static_cast<int>(min64(kMost, end - m));
          for (int i = 0; i < count; i++) {
            source[i] = slab + unit.base[m + i] * plan_.slots;
            x[i] = box + unit.index[m + i] * V::lanes;
            sums[i] = stage + unit.index[m + i] * V::lanes;
          }
          accumulate_tile<V, kTerm, 1, kLanewise>({source, x, sums}, count,
                                                  plan_.runs.data() + block.first_run,
                                                  block.num_runs, w + block.first_row * V::lanes);
        }
      }
    }
  }

  const Plan plan_;
  const ta_problem& problem_;
  const int rule_;
  const T* gy_;
  const T* x_;
  const T* w_;
  T* gx_;
  T* packed_ = nullptr;
  bool weights_not_finite_ = false;
};

template <class V>
int backward_input(const ta_problem& problem, int rule, const void* gy, const void* x,
                   const void* w, void* gx, int threads) {
  return BackwardInput<V>(problem, rule, gy, x, w, gx).run(threads);
}

}  // namespace
