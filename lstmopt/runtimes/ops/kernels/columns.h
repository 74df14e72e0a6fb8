// Many states against some panels: as many states at once as the instruction set takes.
#pragma once

#include <algorithm>

#include "isa.h"

namespace lstmopt {

class Columns {
 public:
  Columns() = default;
  Columns(const Isa& isa, const Matrix& matrix) : most_(isa.most_columns) {
    if (matrix.format == Format::kI8Planes2) most_ = std::max<size_t>(1, most_ / 2);
    for (size_t count = 1; count <= most_; count *= 2) functions_[count] = isa.dot(matrix, count);
  }

  size_t most() const { return most_; }

  // How many of `left` states the next call takes.
  size_t next(size_t left) const {
    size_t count = most_;
    while (count > left) count /= 2;
    return count;
  }

  // Panels first..last of states that lie `state_bytes` apart: out[column * stride + ...].
  void run(const Matrix& matrix, size_t first, size_t last, const uint8_t* states, const float* scales, size_t columns,
           const float* bias, float* out, size_t stride) const {
    const uint8_t* at[4];
    for (size_t i = 0; i < columns; ++i) at[i] = states + i * matrix.state_bytes;
    functions_[columns](matrix, Dot{first, last, at, scales, bias, out, stride});
  }

 private:
  size_t most_ = 0;
  DotFunction functions_[5] = {};
};

}  // namespace lstmopt
