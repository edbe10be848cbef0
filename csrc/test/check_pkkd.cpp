// Checks PKKD's kernels through the C interface against plain loops in float64, on random problems,
// without torch or Python: a program that runs under AddressSanitizer and UBSan.
//
//   check_pkkd [problems] [seed]
//
// TORCHADDER_CPU_CAPABILITY chooses the instruction set, as in the library.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "torchadder_pkkd.h"

namespace {

std::mt19937 generator;

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

std::vector<float> normal(int64_t count, double mean, double deviation) {
  std::normal_distribution<double> distribution(mean, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(distribution(generator));
  return values;
}

struct Values {
  std::vector<double> kernel;    // less 1; the centred outputs without a kernel
  std::vector<double> exponent;  // binary, before the clamp
};

Values plain_values(const ta_pkkd_problem& p, const ta_pkkd_side& side) {
  Values values;
  for (int64_t i = 0; i < p.positions * p.channels; i++) {
    const double centred = double(side.output[i]) - side.centre[i % p.channels];
    const double exponent = centred * side.rate, limit = p.limit;
    values.exponent.push_back(exponent / std::log(2));
    values.kernel.push_back(
        side.has_kernel ? std::exp(std::min(std::max(exponent, -limit), limit)) - 1 : centred);
  }
  return values;
}

// The five parts of the sums of torchadder_pkkd.h.
std::vector<std::vector<double>> plain_sums(const ta_pkkd_problem& p, const Values& k,
                                            const Values& l) {
  const int64_t channels = p.channels;
  std::vector<std::vector<double>> sums;
  for (int part = 0; part < 5; part++)
    sums.emplace_back(static_cast<size_t>(part < 2 ? channels : channels * channels), 0.0);
  for (int64_t at = 0; at < p.positions; at++) {
    const double* row_k = k.kernel.data() + at * channels;
    const double* row_l = l.kernel.data() + at * channels;
    for (int64_t c = 0; c < channels; c++) {
      sums[0][c] += row_k[c];
      sums[1][c] += row_l[c];
      for (int64_t d = 0; d < channels; d++) {
        sums[2][c * channels + d] += row_k[c] * row_k[d];
        sums[3][c * channels + d] += row_l[c] * row_l[d];
        sums[4][c * channels + d] += row_k[c] * row_l[d];
      }
    }
  }
  return sums;
}

double largest(const std::vector<double>& values) {
  double size = 0;
  for (double value : values) size = std::max(size, std::fabs(value));
  return size;
}

template <class Got>
bool close(const char* what, const Got* got, const std::vector<double>& want, double tolerance) {
  for (size_t i = 0; i < want.size(); i++)
    if (!(std::fabs(got[i] - want[i]) <= tolerance)) {
      std::printf("%s %zu: got %.9g, want %.9g\n", what, i, double(got[i]), want[i]);
      return false;
    }
  return true;
}

// The sums of a side are compared in units of its own spread, those of products of their largest.
bool close_sums(const ta_pkkd_problem& p, const double* got,
                const std::vector<std::vector<double>>& want) {
  const char* names[] = {"sums of k", "sums of l", "k k^T", "l l^T", "k l^T"};
  const double of_k = largest(want[2]), of_l = largest(want[3]), number = double(p.positions);
  const double sizes[] = {std::sqrt(of_k * number), std::sqrt(of_l * number), of_k, of_l,
                          std::sqrt(of_k * of_l)};
  for (int part = 0; part < 5; part++) {
    if (!close(names[part], got, want[part], 1e-5 * sizes[part])) return false;
    got += want[part].size();
  }
  return true;
}

bool check_gradient(const ta_pkkd_problem& p, const Values& k, const Values& l, bool wants_teacher,
                    int threads) {
  const int64_t channels = p.channels, both = 2 * channels;
  std::vector<float> matrix = normal(both * both, 0, 1);
  for (int64_t c = 0; c < both; c++)
    for (int64_t d = 0; d < c; d++) matrix[c * both + d] = matrix[d * both + c];
  const std::vector<float> offset = normal(both, 0, 1), shift = normal(channels, 0, 1);
  std::vector<double> want, want_rate_sums(2, 0.0);
  double terms = 0;
  bool at_the_limit = false;  // a rounding decides on which side
  for (int64_t at = 0; at < p.positions; at++)
    for (int64_t c = 0; c < (wants_teacher ? both : channels); c++) {
      double sum = offset[c];
      for (int64_t d = 0; d < both; d++) {
        const Values& of = d < channels ? k : l;
        sum += matrix[c * both + d] * of.kernel[at * channels + d % channels];
      }
      const ta_pkkd_side& side = c < channels ? p.student : p.teacher;
      const size_t i = static_cast<size_t>(at * channels + c % channels);
      if (side.has_kernel) {
        const Values& own = c < channels ? k : l;
        sum *= side.rate * (own.kernel[i] + 1);
        const double beyond = std::fabs(own.exponent[i]) * std::log(2) - p.limit;
        if (std::fabs(beyond) < 1e-4) at_the_limit = true;
        if (beyond <= 0) {
          want_rate_sums[c / channels] += sum * own.exponent[i];
          terms += std::fabs(sum * own.exponent[i]);
        }
      }
      if (c < channels) want.push_back(sum - shift[c]);
    }
  // Exactly as large as promised: the sanitizer sees what is written behind the end.
  std::vector<float> gradient(want.size());
  double rate_sums[2];
  if (ta_pkkd_gradient(&p, matrix.data(), offset.data(), shift.data(), wants_teacher,
                       gradient.data(), rate_sums, threads) != TA_OK)
    return false;
  return close("gradient", gradient.data(), want, 1e-5 * (1 + largest(want))) &&
         (at_the_limit || close("rate sums", rate_sums, want_rate_sums, 1e-5 * (1 + terms)));
}

bool check_problem() {
  ta_pkkd_problem p;
  p.channels = pick({1, 2, 5, 16, 19, 33, 64, 100});
  p.positions = pick({0, 1, 3, 64, 257, 1023, 1024, 3000});
  p.limit = 1.5f;
  const int64_t size = p.positions * p.channels;
  const std::vector<float> student = normal(size, -300, 20), teacher = normal(size, 5, 30);
  const std::vector<float> centre_k = normal(p.channels, -300, 2), centre_l = normal(p.channels, 5, 2);
  p.student = {student.data(), centre_k.data(), 0.03f, static_cast<int>(generator() % 2)};
  p.teacher = {teacher.data(), centre_l.data(), 0.02f, static_cast<int>(generator() % 2)};
  const Values k = plain_values(p, p.student), l = plain_values(p, p.teacher);
  const std::vector<std::vector<double>> want = plain_sums(p, k, l);
  std::vector<double> sums(static_cast<size_t>((2 + 3 * p.channels) * p.channels));
  const int threads = 1 + static_cast<int>(generator() % 3);
  if (ta_pkkd_sums(&p, sums.data(), threads) != TA_OK) return false;
  const bool wants_teacher = p.teacher.has_kernel && generator() % 2;
  if (close_sums(p, sums.data(), want) &&
      check_gradient(p, k, l, wants_teacher, threads))
    return true;
  std::printf("%lld positions of %lld channels, %d threads\n", (long long)p.positions,
              (long long)p.channels, threads);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  generator.seed(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1u);
  for (int i = 0; i < problems; i++)
    if (!check_problem()) return 1;
  std::printf("%s: %d problems checked\n", ta_cpu_capability(), problems);
  return 0;
}
