// The sums behind PKKD's distance between two layers, and their gradient (torchadder_pkkd.h). Each reads
// the outputs from memory once; kernel values live in a tile that stays in the cache, with the student's
// channels and the teacher's side by side in every row (a position): [k, l].
#pragma once

#include <cstdint>
#include <cstring>

#include "pack.h"
#include "power_of_two.h"
#include "torchadder_pkkd.h"

namespace {

constexpr int64_t kTileElements = 8192;
// Positions whose sums are taken in float32.
constexpr int64_t kBlockPositions = 512;
// Blocks are shared out among at most so many tasks, each with sums of its own, for any number of threads.
constexpr int64_t kMaxTasks = 32;
// Rows of a tile of registers; all sizes of vectors are multiples of it.
constexpr int kRows = 4;

inline int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// sums[r][:] += sum over i < count of left[i][r] right[i][:], r < 4, for W vectors of right.
template <class V, int W>
void add_products(const float* left, int64_t left_step, int64_t left_row, const float* right,
                  int64_t right_step, int64_t count, float* sums, int64_t sums_row) {
  using Reg = typename V::Reg;
  Reg total[kRows][W];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < W; v++) total[r][v] = V::load(sums + r * sums_row + v * V::lanes);
  for (int64_t i = 0; i < count; i++) {
    Reg values[W];
    for (int v = 0; v < W; v++) values[v] = V::load(right + v * V::lanes);
    for (int r = 0; r < kRows; r++) {
      const Reg factor = V::set1(left[r * left_row]);
      for (int v = 0; v < W; v++) total[r][v] = V::fma(factor, values[v], total[r][v]);
    }
    left += left_step;
    right += right_step;
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < W; v++) V::store(sums + r * sums_row + v * V::lanes, total[r][v]);
}

// The same for `rows` rows, a multiple of 4, and `cols` columns, whole vectors.
template <class V>
void add_products(const float* left, int64_t left_step, int64_t left_row, int64_t rows,
                  const float* right, int64_t right_step, int64_t cols, int64_t count, float* sums,
                  int64_t sums_row) {
  constexpr int kWide = V::lanes == 16 ? 4 : 2;  // of 32 registers, or of 16
  int64_t col = 0;
  const auto each = [&](auto add, int64_t width) {
    for (int64_t row = 0; row < rows; row += kRows)
      add(left + row * left_row, left_step, left_row, right + col, right_step, count,
          sums + row * sums_row + col, sums_row);
    col += width;
  };
  while (col + kWide * V::lanes <= cols) each(add_products<V, kWide>, kWide * V::lanes);
  while (col + 2 * V::lanes <= cols) each(add_products<V, 2>, 2 * V::lanes);
  while (col < cols) each(add_products<V, 1>, V::lanes);
}

// Both sides of a problem: from outputs to kernel values, a tile at a time.
template <class V>
class PkkdSides {
  using Reg = typename V::Reg;

 public:
  explicit PkkdSides(const ta_pkkd_problem& problem)
      : problem(problem),
        padded(round_up(problem.channels, V::lanes)),
        width(2 * padded),
        tile_positions(round_up(max64(kTileElements / width, 1), kRows)),
        num_blocks((problem.positions + kBlockPositions - 1) / kBlockPositions),
        num_tasks(min64(kMaxTasks, num_blocks)),
        centres_(width) {
    if (!ok()) return;
    std::memset(centres_.data(), 0, sizeof(float) * width);
    std::memcpy(centres_.data(), problem.student.centre, sizeof(float) * problem.channels);
    std::memcpy(centres_.data() + padded, problem.teacher.centre, sizeof(float) * problem.channels);
  }

  bool ok() const { return centres_.ok(); }
  int64_t tile_size() const { return tile_positions * width; }

  int64_t first_block(int64_t task) const { return task * num_blocks / num_tasks; }

  // Calls use(first, count) for the tiles of a block, of `count` <= tile_positions positions.
  template <class Use>
  void for_tiles_of(int64_t block, Use use) const {
    int64_t first = block * kBlockPositions;
    const int64_t last = min64(first + kBlockPositions, problem.positions);
    for (; first < last; first += tile_positions) use(first, min64(tile_positions, last - first));
  }

  // Kernel values of positions first .. first + count - 1.
  void fill(int64_t first, int64_t count, float* tile) const {
    fill_side(problem.student, centres_.data(), first, count, tile);
    fill_side(problem.teacher, centres_.data() + padded, first, count, tile + padded);
  }

  // From gradients of the kernel values, rows of `gradient_row`, to those of the outputs. Calls
  // store(position, channel, vector) and returns the side's `rate_sums`.
  template <class Store>
  double through_kernel(bool of_teacher, int64_t first, int64_t count, const float* tile,
                        const float* gradient, int64_t gradient_row, Store store) const {
    const ta_pkkd_side& side = of_teacher ? problem.teacher : problem.student;
    const float* centre = centres_.data() + (of_teacher ? padded : 0);
    const float* values = tile + (of_teacher ? padded : 0);
    const Reg rate = V::set1(side.rate), binary_rate = V::set1(binary(side.rate));
    const Reg limit = V::set1(binary(problem.limit));
    Reg rate_sum = V::zero();
    for (int64_t p = 0; p < count; p++) {
      const float* output = side.output + (first + p) * problem.channels;
      for (int64_t c = 0; c < padded; c += V::lanes) {
        Reg g = V::load(gradient + p * gradient_row + c);
        if (side.has_kernel) {
          const Reg centred = V::sub(load(output, c), V::load(centre + c));
          const Reg exponent = V::fma(centred, binary_rate, V::zero());
          g = V::fma(g, V::fma(rate, V::load(values + p * width + c), rate), V::zero());
          rate_sum = V::fma(g, V::within(exponent, limit), rate_sum);
        }
        store(p, c, g);
      }
    }
    float lanes[V::lanes];
    V::store(lanes, rate_sum);
    double total = 0;
    for (float lane : lanes) total += lane;
    return total;
  }

  const ta_pkkd_problem& problem;
  const int64_t padded;          // channels of a side in whole vectors; the rest is 0
  const int64_t width;           // of a row of a tile
  const int64_t tile_positions;  // a multiple of kRows
  const int64_t num_blocks;
  const int64_t num_tasks;

 private:
  static float binary(float exponent) { return exponent * 1.44269504f; }

  Reg load(const float* output, int64_t channel) const {
    const int64_t left = problem.channels - channel;
    if (left >= V::lanes) return V::load(output + channel);
    float lanes[V::lanes] = {};
    std::memcpy(lanes, output + channel, sizeof(float) * left);
    return V::load(lanes);
  }

  void fill_side(const ta_pkkd_side& side, const float* centre, int64_t first, int64_t count,
                 float* tile) const {
    const Reg rate = V::set1(binary(side.rate)), rounding = V::set1(kRounding);
    const Reg limit = V::set1(binary(problem.limit)), lowest = V::sub(V::zero(), limit);
    const float* output = side.output + first * problem.channels;
    for (int64_t p = 0; p < count; p++) {
      for (int64_t c = 0; c < padded; c += V::lanes) {
        Reg value = V::sub(load(output, c), V::load(centre + c));
        if (side.has_kernel) {
          const Reg exponent = V::fma(value, rate, V::zero());
          // In this order NaN passes the clamp.
          const Reg x = V::min(limit, V::max(lowest, exponent));
          const Reg shifted = V::add(x, rounding);
          const Reg z = V::sub(x, V::sub(shifted, rounding));
          // The power's bits are shifted by those of x, so it may have lost NaN; z has kept it.
          value = V::sub(V::fma(z, V::zero(), power_of_two<V>(z, shifted)), V::set1(1));
        }
        V::store(tile + c, value);
      }
      output += problem.channels;
      tile += width;
    }
  }

  Buffer<float> centres_;
};

// The sums of a block of positions in float32: of [k, l], of k [k, l]^T and of l l^T.
template <class V>
class PkkdBlock {
 public:
  explicit PkkdBlock(const PkkdSides<V>& sides)
      : sides_(sides), size_(sides.width + 3 * sides.padded * sides.padded), sums_(size_) {}

  bool ok() const { return sums_.ok(); }
  void clear() { std::memset(sums_.data(), 0, sizeof(float) * size_); }

  void add(const float* tile, int64_t count) {
    const int64_t padded = sides_.padded, width = sides_.width;
    for (int64_t c = 0; c < width; c += V::lanes) {
      typename V::Reg total = V::load(sums_.data() + c);
      for (int64_t p = 0; p < count; p++) total = V::add(total, V::load(tile + p * width + c));
      V::store(sums_.data() + c, total);
    }
    add_products<V>(tile, width, 1, padded, tile, width, width, count, of_student(), width);
    add_products<V>(tile + padded, width, 1, padded, tile + padded, width, padded, count,
                    of_teacher(), padded);
  }

  // Adds them to the sums of torchadder_pkkd.h.
  void flush(int64_t channels, double* sums) {
    const int64_t padded = sides_.padded, width = sides_.width, square = channels * channels;
    double* products = sums + 2 * channels;
    for (int64_t c = 0; c < channels; c++) {
      sums[c] += sums_.data()[c];
      sums[channels + c] += sums_.data()[padded + c];
      for (int64_t d = 0; d < channels; d++) {
        const int64_t at = c * channels + d;
        products[at] += of_student()[c * width + d];
        products[square + at] += of_teacher()[c * padded + d];
        products[2 * square + at] += of_student()[c * width + padded + d];
      }
    }
  }

 private:
  float* of_student() { return sums_.data() + sides_.width; }
  float* of_teacher() { return of_student() + sides_.padded * sides_.width; }

  const PkkdSides<V>& sides_;
  const int64_t size_;
  Buffer<float> sums_;
};

template <class V>
int pkkd_sums(const ta_pkkd_problem& problem, double* sums, int threads) {
  const PkkdSides<V> sides(problem);
  const int64_t channels = problem.channels, size = 2 * channels + 3 * channels * channels;
  const Buffer<double> partial(sides.num_tasks * size);
  if (!sides.ok() || !partial.ok()) return TA_OUT_OF_MEMORY;
  int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
  {
    const Buffer<float> tile(sides.tile_size());
    PkkdBlock<V> block(sides);
    if (!tile.ok() || !block.ok()) status = TA_OUT_OF_MEMORY;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < sides.num_tasks; task++) {
      if (status != TA_OK) continue;
      double* own = partial.data() + task * size;
      std::memset(own, 0, sizeof(double) * size);
      for (int64_t b = sides.first_block(task); b < sides.first_block(task + 1); b++) {
        block.clear();
        sides.for_tiles_of(b, [&](int64_t first, int64_t count) {
          sides.fill(first, count, tile.data());
          block.add(tile.data(), count);
        });
        block.flush(channels, own);
      }
    }
  }
  if (status != TA_OK) return status;
  std::memset(sums, 0, sizeof(double) * size);
  for (int64_t task = 0; task < sides.num_tasks; task++)
    for (int64_t i = 0; i < size; i++) sums[i] += partial.data()[task * size + i];
  return TA_OK;
}

// A vector of both sides, or each row of a matrix, in the layout of a tile.
template <class V>
void pad_sides(const PkkdSides<V>& sides, int64_t channels, const float* from, float* to) {
  std::memset(to, 0, sizeof(float) * sides.width);
  std::memcpy(to, from, sizeof(float) * channels);
  std::memcpy(to + sides.padded, from + channels, sizeof(float) * channels);
}

template <class V>
int pkkd_gradient(const ta_pkkd_problem& problem, const float* matrix, const float* offset,
                  const float* shift, bool wants_teacher, float* result, double* rate_sums,
                  int threads) {
  const PkkdSides<V> sides(problem);
  const int64_t channels = problem.channels, padded = sides.padded, width = sides.width;
  const int64_t columns = wants_teacher ? width : padded;
  const Buffer<float> weights(width * width), offsets(width), shifts(padded);
  const Buffer<double> partial(2 * sides.num_tasks);
  if (!sides.ok() || !weights.ok() || !offsets.ok() || !shifts.ok() || !partial.ok())
    return TA_OUT_OF_MEMORY;
  std::memset(weights.data(), 0, sizeof(float) * width * width);
  for (int64_t row = 0; row < 2 * channels; row++) {
    const int64_t to = row < channels ? row : row - channels + padded;
    pad_sides(sides, channels, matrix + row * 2 * channels, weights.data() + to * width);
  }
  pad_sides(sides, channels, offset, offsets.data());
  std::memset(shifts.data(), 0, sizeof(float) * padded);
  std::memcpy(shifts.data(), shift, sizeof(float) * channels);
  int status = TA_OK;
#pragma omp parallel num_threads(threads) reduction(| : status)
  {
    const Buffer<float> tile(sides.tile_size()), stage(sides.tile_size());
    if (!tile.ok() || !stage.ok()) status = TA_OUT_OF_MEMORY;
    // Rows are multiplied by fours: those behind the last position, too, without use.
    if (status == TA_OK) std::memset(tile.data(), 0, sizeof(float) * sides.tile_size());
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < sides.num_tasks; task++) {
      if (status != TA_OK) continue;
      double* own = partial.data() + 2 * task;
      own[0] = own[1] = 0;
      const auto use = [&](int64_t first, int64_t count) {
        sides.fill(first, count, tile.data());
        const int64_t rows = round_up(count, kRows);
        for (int64_t p = 0; p < rows; p++)
          std::memcpy(stage.data() + p * columns, offsets.data(), sizeof(float) * columns);
        add_products<V>(tile.data(), 1, width, rows, weights.data(), width, columns, width,
                        stage.data(), columns);
        own[0] += sides.through_kernel(
            false, first, count, tile.data(), stage.data(), columns,
            [&](int64_t p, int64_t c, typename V::Reg g) {
              float* to = result + (first + p) * channels + c;
              g = V::sub(g, V::load(shifts.data() + c));
              if (channels - c >= V::lanes) return V::store(to, g);
              float lanes[V::lanes];
              V::store(lanes, g);
              std::memcpy(to, lanes, sizeof(float) * (channels - c));
            });
        if (wants_teacher)
          own[1] += sides.through_kernel(true, first, count, tile.data(), stage.data() + padded,
                                         columns, [](int64_t, int64_t, typename V::Reg) {});
      };
      for (int64_t b = sides.first_block(task); b < sides.first_block(task + 1); b++)
        sides.for_tiles_of(b, use);
    }
  }
  if (status != TA_OK) return status;
  rate_sums[0] = rate_sums[1] = 0;
  for (int64_t task = 0; task < sides.num_tasks; task++)
    for (int side = 0; side < 2; side++) rate_sums[side] += partial.data()[2 * task + side];
  return TA_OK;
}

}  // namespace
