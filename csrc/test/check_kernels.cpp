// Checks the kernels through the C interface against plain loops, on random problems, without torch
// or Python: the program that runs under AddressSanitizer and UBSan.
//
//   check_kernels [problems] [seed]
//
// TORCHADDER_CPU_CAPABILITY chooses the instruction set, as in the library.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "torchadder_lp.h"

namespace {

// Allocations by `new` that still succeed; negative for all.
std::atomic<int64_t> allocations_left{-1};

}  // namespace

void* operator new(std::size_t size) {
  const bool fails = allocations_left >= 0 && allocations_left-- <= 0;
  void* memory = fails ? nullptr : std::malloc(size ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

std::mt19937 generator;

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

int64_t between(int64_t low, int64_t high) { return low + generator() % (high - low + 1); }

template <class T>
std::vector<T> normal(int64_t count) {
  std::normal_distribution<double> distribution;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(distribution(generator));
  return values;
}

void set_strides(int64_t* strides, int64_t channels, int64_t rows, int64_t cols, bool last) {
  const int64_t contiguous[4] = {channels * rows * cols, rows * cols, cols, 1};
  const int64_t channels_last[4] = {channels * rows * cols, 1, cols * channels, channels};
  for (int i = 0; i < 4; i++) strides[i] = last ? channels_last[i] : contiguous[i];
}

bool random_problem(ta_problem* p) {
  p->groups = pick({1, 1, 1, 2, 3, 8, 19});
  const int64_t in = pick({1, 2, 3, 16, 17, 33}), out = pick({1, 2, 5, 16, 31, 48, 66});
  p->in_channels = p->groups * (p->groups > 3 ? pick({1, 2}) : in);
  p->out_channels = p->groups * (p->groups > 3 ? pick({1, 3}) : out);
  p->batch = between(1, 4);
  p->kernel_h = between(1, 4);
  p->kernel_w = between(1, 5);
  p->stride_h = between(1, 3);
  p->stride_w = between(1, 3);
  p->dilation_h = pick({1, 1, 2, 2, 9});
  p->dilation_w = pick({1, 2, 3, 40});
  p->pad_h = between(0, p->dilation_h > 3 ? 20 : 4);
  p->pad_w = between(0, p->dilation_w > 3 ? 90 : 4);
  p->height = between(1, 12);
  p->width = between(1, 20);
  const int64_t rows = p->height + 2 * p->pad_h - p->dilation_h * (p->kernel_h - 1) - 1;
  const int64_t cols = p->width + 2 * p->pad_w - p->dilation_w * (p->kernel_w - 1) - 1;
  if (rows < 0 || cols < 0) return false;
  p->out_height = rows / p->stride_h + 1;
  p->out_width = cols / p->stride_w + 1;
  set_strides(p->input_strides, p->in_channels, p->height, p->width, generator() % 2);
  set_strides(p->output_strides, p->out_channels, p->out_height, p->out_width, generator() % 2);
  set_strides(p->result_strides, p->in_channels, p->height, p->width, generator() % 2);
  return true;
}

int64_t at(const int64_t* strides, int64_t a, int64_t b, int64_t c, int64_t d) {
  return a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
}

// Calls visit(n, channel or -1, h, w, o, p, q, weight index) for every tap; channel -1 in padding.
template <class Visit>
void for_each_tap(const ta_problem& p, Visit visit) {
  const int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t o = 0; o < p.out_channels; o++)
      for (int64_t i = 0; i < p.out_height; i++)
        for (int64_t j = 0; j < p.out_width; j++)
          for (int64_t c = 0; c < in; c++)
            for (int64_t r = 0; r < p.kernel_h; r++)
              for (int64_t s = 0; s < p.kernel_w; s++) {
                const int64_t h = i * p.stride_h + r * p.dilation_h - p.pad_h;
                const int64_t w = j * p.stride_w + s * p.dilation_w - p.pad_w;
                const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
                visit(n, inside ? o / out * in + c : -1, h, w, o, i, j,
                      ((o * in + c) * p.kernel_h + r) * p.kernel_w + s);
              }
}

double factor(int rule, double d) {
  if (rule == TA_RULE_CLIP) return d > 1 ? 1 : d < -1 ? -1 : d;
  if (rule == TA_RULE_SIGN) return (d > 0) - (d < 0);
  return d;
}

// Error in units of eps times the size of the terms.
template <class T>
bool close(const char* what, const std::vector<T>& got, const std::vector<double>& want,
           const std::vector<double>& size) {
  for (size_t i = 0; i < got.size(); i++) {
    const double bound = 32 * std::numeric_limits<T>::epsilon() * size[i];
    if (!(std::fabs(double(got[i]) - want[i]) <= bound)) {
      std::printf("%s[%zu]: got %.9g, want %.9g, bound %.3g\n", what, i, double(got[i]), want[i],
                  bound);
      return false;
    }
  }
  return true;
}

// The three lp kernels at one exponent; `clip` is that of the input gradient.
template <class T>
bool check_lp(const ta_problem& p, int dtype, int threads, double power, bool clip,
              const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& gy) {
  std::vector<double> want(gy.size()), size(gy.size()), want_x(x.size()), size_x(x.size()),
      want_w(w.size()), size_w(w.size());
  for_each_tap(p, [&](int64_t n, int64_t c, int64_t h, int64_t v, int64_t o, int64_t i, int64_t j,
                      int64_t k) {
    const int64_t at_x = c < 0 ? -1 : at(p.input_strides, n, c, h, v);
    const int64_t y = at(p.output_strides, n, o, i, j);
    const double d = (c < 0 ? 0.0 : x[at_x]) - double(w[k]);
    want[y] -= std::pow(std::fabs(d), power);
    size[y] += std::pow(std::fabs(d), power);
    const double slope = power * std::copysign(std::pow(std::fabs(d), power - 1), d);
    want_w[k] += slope * gy[y];
    size_w[k] += std::fabs(slope * gy[y]);
    if (c < 0) return;
    const double term = (clip ? factor(TA_RULE_CLIP, -slope) : -slope) * gy[y];
    const int64_t at_gx = at(p.result_strides, n, c, h, v);
    want_x[at_gx] += term;
    size_x[at_gx] += std::fabs(term);
  });
  std::vector<T> y(gy.size(), T(NAN)), gx(x.size(), T(NAN)), gw(w.size(), T(NAN));
  return ta_adder2d_lp_forward(&p, dtype, power, x.data(), w.data(), nullptr, y.data(), threads) ==
             TA_OK &&
         close("lp y", y, want, size) &&
         ta_adder2d_lp_backward_input(&p, dtype, power, clip, gy.data(), x.data(), w.data(),
                                      gx.data(), threads) == TA_OK &&
         close("lp gx", gx, want_x, size_x) &&
         ta_adder2d_lp_backward_weight(&p, dtype, power, gy.data(), x.data(), w.data(), gw.data(),
                                       threads) == TA_OK &&
         close("lp gw", gw, want_w, size_w);
}

template <class T>
bool check(const ta_problem& p, int dtype, int threads) {
  const int64_t num_x = p.batch * p.in_channels * p.height * p.width;
  const int64_t num_y = p.batch * p.out_channels * p.out_height * p.out_width;
  const int64_t num_w = p.out_channels * (p.in_channels / p.groups) * p.kernel_h * p.kernel_w;
  // Exactly sized, so that AddressSanitizer sees any access beyond the ends.
  const std::vector<T> x = normal<T>(num_x), w = normal<T>(num_w), gy = normal<T>(num_y);
  const std::vector<T> bias = normal<T>(p.out_channels);
  std::vector<double> want(num_y), size(num_y);
  for_each_tap(p, [&](int64_t n, int64_t c, int64_t h, int64_t v, int64_t o, int64_t i, int64_t j,
                      int64_t k) {
    const int64_t y = at(p.output_strides, n, o, i, j);
    const double d = std::fabs((c < 0 ? 0.0 : x[at(p.input_strides, n, c, h, v)]) - double(w[k]));
    want[y] -= d;
    size[y] += d;
  });
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t o = 0; o < p.out_channels; o++)
      for (int64_t i = 0; i < p.out_height; i++)
        for (int64_t j = 0; j < p.out_width; j++) {
          const int64_t y = at(p.output_strides, n, o, i, j);
          want[y] += bias[o];
          size[y] += std::fabs(bias[o]);
        }
  std::vector<T> y(num_y, T(NAN));
  bool ok = ta_adder2d_forward(&p, dtype, x.data(), w.data(), bias.data(), y.data(), threads) ==
            TA_OK;
  ok = ok && close("y", y, want, size);

  for (int rule : {TA_RULE_CLIP, TA_RULE_SIGN, TA_RULE_L2}) {
    std::vector<double> want_x(num_x), size_x(num_x);
    for_each_tap(p, [&](int64_t n, int64_t c, int64_t h, int64_t v, int64_t o, int64_t i, int64_t j,
                        int64_t k) {
      if (c < 0) return;
      const double d = double(w[k]) - x[at(p.input_strides, n, c, h, v)];
      const double term = factor(rule, d) * gy[at(p.output_strides, n, o, i, j)];
      const int64_t at_x = at(p.result_strides, n, c, h, v);
      want_x[at_x] += term;
      size_x[at_x] += std::fabs(term);
    });
    std::vector<T> gx(num_x, T(NAN));
    ok = ok && ta_adder2d_backward_input(&p, dtype, rule, gy.data(), x.data(), w.data(), gx.data(),
                                         threads) == TA_OK;
    ok = ok && close("gx", gx, want_x, size_x);
  }

  std::vector<double> want_w(num_w), size_w(num_w);
  for_each_tap(p, [&](int64_t n, int64_t c, int64_t h, int64_t v, int64_t o, int64_t i, int64_t j,
                      int64_t k) {
    const double d = (c < 0 ? 0.0 : x[at(p.input_strides, n, c, h, v)]) - double(w[k]);
    const double term = factor(TA_RULE_SIGN, d) * gy[at(p.output_strides, n, o, i, j)];
    want_w[k] += term;
    size_w[k] += std::fabs(term);
  });
  std::vector<T> gw(num_w, T(NAN));
  ok = ok && ta_adder2d_backward_weight_sign(&p, dtype, gy.data(), x.data(), w.data(), gw.data(),
                                             threads) == TA_OK;
  ok = ok && close("gw", gw, want_w, size_w);
  return ok && check_lp(p, dtype, threads, 1.25, false, x, w, gy) &&
         check_lp(p, dtype, threads, 1.75, true, x, w, gy);
}

// Whichever allocation fails, the call says so: no exception leaves it.
bool check_without_memory() {
  ta_problem p{};
  p.batch = 2;
  p.in_channels = p.out_channels = 2;
  p.height = p.width = p.out_height = p.out_width = 4;
  p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = p.groups = 1;
  for (int64_t* strides : {p.input_strides, p.output_strides, p.result_strides})
    set_strides(strides, 2, 4, 4, false);
  const std::vector<float> image(64), weight(4);
  std::vector<float> result(64);
  const float *x = image.data(), *w = weight.data();
  for (int function = 0; function < 4; function++) {
    int status = TA_OUT_OF_MEMORY;
    for (int64_t allowed = 0; status != TA_OK; allowed++) {
      allocations_left = allowed;
      if (function == 0)
        status = ta_adder2d_forward(&p, TA_FLOAT32, x, w, nullptr, result.data(), 2);
      else if (function == 1)
        status = ta_adder2d_backward_input(&p, TA_FLOAT32, TA_RULE_CLIP, x, x, w, result.data(), 2);
      else if (function == 2)
        status = ta_adder2d_backward_weight_sign(&p, TA_FLOAT32, x, x, w, result.data(), 2);
      else
        status = ta_adder2d_lp_backward_weight(&p, TA_FLOAT32, 1.5, x, x, w, result.data(), 2);
      allocations_left = -1;
      if (status != TA_OK && status != TA_OUT_OF_MEMORY) return false;
      if (allowed == 0 && status == TA_OK) return false;  // nothing was counted
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  generator.seed(argc > 2 ? std::atoi(argv[2]) : 0);
  if (!check_without_memory()) {
    std::printf("failed: without memory\n");
    return 1;
  }
  int checked = 0;
  while (checked < problems) {
    ta_problem p{};
    if (!random_problem(&p)) continue;
    const int threads = static_cast<int>(between(1, 3));
    if (!check<float>(p, TA_FLOAT32, threads) || !check<double>(p, TA_FLOAT64, threads)) {
      std::printf("failed: batch %lld, in %lld x %lld x %lld, out %lld, kernel %lld x %lld, "
                  "stride %lld %lld, pad %lld %lld, dilation %lld %lld, groups %lld\n",
                  (long long)p.batch, (long long)p.in_channels, (long long)p.height,
                  (long long)p.width, (long long)p.out_channels, (long long)p.kernel_h,
                  (long long)p.kernel_w, (long long)p.stride_h, (long long)p.stride_w,
                  (long long)p.pad_h, (long long)p.pad_w, (long long)p.dilation_h,
                  (long long)p.dilation_w, (long long)p.groups);
      return 1;
    }
    checked++;
  }
  std::printf("%s: %d problems checked\n", ta_cpu_capability(), checked);
  return 0;
}
