// A plain sparse matrix: Y = X . W' + b.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "columns.h"
#include "lstmopt_kernels.h"
#include "parallel.h"
#include "refusal.h"
#include "scratch.h"

struct lstmopt_matmul {
  const lstmopt::Isa* isa;
  lstmopt::Matrix matrix;
  lstmopt::Columns columns;
  lstmopt::Buffer<float> bias;  // [panels, 16]
};

namespace lstmopt {
namespace {

// Rows of X that are encoded at a time: they should stay in the L2 cache.
constexpr size_t kStateBytes = 1 << 19;
constexpr size_t kMostColumns = 4;

lstmopt_matmul* create(const void* w, size_t w_bytes, const float* b, size_t b_count) {
  size_t used = 0;
  if (!w) throw Refusal{"W is missing"};
  Matrix matrix = read_matrix(w, w_bytes, &used);
  if (matrix.gates != 1) throw Refusal{"W is packed for the gates of an LSTM, not as a plain matrix"};
  if (used != w_bytes) throw Refusal{"W holds more than one matrix"};
  if (b && b_count != matrix.units) {
    throw Refusal{"B has " + std::to_string(b_count) + " values, expected " + std::to_string(matrix.units)};
  }
  Buffer<float> bias = allocate<float>(matrix.panels * kLanes);
  for (size_t unit = 0; unit < matrix.panels * kLanes; ++unit) {
    bias[unit] = b && unit < matrix.units ? b[unit] : 0.0f;
    if (!std::isfinite(bias[unit])) throw Refusal{"B holds a value that is not finite"};
  }
  const Isa& isa = current_isa();
  Columns columns(isa, matrix);
  return new lstmopt_matmul{&isa, std::move(matrix), columns, std::move(bias)};
}

// Panels first..last of some encoded rows; the last panel may hold fewer units than lanes.
void multiply(const lstmopt_matmul& product, size_t first, size_t last, size_t rows, const uint8_t* states,
              const float* scales, float* y) {
  const Matrix& matrix = product.matrix;
  const size_t whole = std::min(last, matrix.units / kLanes);
  const float* bias = product.bias.get();
  for (size_t row = 0; row < rows;) {
    const size_t count = product.columns.next(rows - row);
    const uint8_t* at = states + row * matrix.state_bytes;
    float* out = y + row * matrix.units;
    if (first < whole) {
      product.columns.run(matrix, first, whole, at, scales + row, count, bias, out + first * kLanes, matrix.units);
    }
    if (whole < last) {
      alignas(64) float rest[kMostColumns * kLanes];
      product.columns.run(matrix, whole, last, at, scales + row, count, bias, rest, kLanes);
      for (size_t i = 0; i < count; ++i) {
        std::memcpy(out + i * matrix.units + whole * kLanes, rest + i * kLanes, (matrix.units - whole * kLanes) * 4);
      }
    }
    row += count;
  }
}

void run(const lstmopt_matmul& product, size_t rows, const float* x, float* y, const lstmopt_parallel* parallel) {
  const Matrix& matrix = product.matrix;
  const size_t most = std::max<size_t>(kMostColumns, kStateBytes / matrix.state_bytes);
  const size_t chunk = std::min(rows, most);
  Scratch scratch(aligned(chunk * matrix.state_bytes) + aligned(chunk * 4));
  uint8_t* states = scratch.take<uint8_t>(chunk * matrix.state_bytes);
  float* scales = scratch.take<float>(chunk);
  for (size_t from = 0; from < rows; from += chunk) {
    const size_t count = std::min(chunk, rows - from);
    for (size_t i = 0; i < count; ++i) {
      product.isa->encode(matrix, x + (from + i) * matrix.columns, states + i * matrix.state_bytes, scales + i);
    }
    spread(parallel, matrix.panels, 1, [&](size_t first, size_t last) {
      // With many rows, a few panels at a time: their weights stay in the L1 cache for all of them.
      const size_t step = count > kMostColumns ? 4 : last - first;
      for (size_t panel = first; panel < last; panel += step) {
        multiply(product, panel, std::min(last, panel + step), count, states, scales, y + from * matrix.units);
      }
    });
  }
}

}  // namespace
}  // namespace lstmopt

int lstmopt_matmul_create(const void* w, size_t w_bytes, const float* b, size_t b_count, lstmopt_matmul** product,
                          char* error, size_t error_bytes) {
  return lstmopt::guarded(error, error_bytes, [&] { *product = lstmopt::create(w, w_bytes, b, b_count); });
}

void lstmopt_matmul_destroy(lstmopt_matmul* product) { delete product; }

size_t lstmopt_matmul_units(const lstmopt_matmul* product) { return product->matrix.units; }

size_t lstmopt_matmul_columns(const lstmopt_matmul* product) { return product->matrix.columns; }

int lstmopt_matmul_run(const lstmopt_matmul* product, size_t rows, const float* x, float* y,
                       const lstmopt_parallel* parallel) {
  return lstmopt::guarded(nullptr, 0, [&] {
    const lstmopt::NoDenormals no_denormals;
    lstmopt::run(*product, rows, x, y, parallel);
  });
}
