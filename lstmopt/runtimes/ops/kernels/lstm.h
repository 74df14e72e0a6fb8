// A layer as the kernels run it.
#pragma once

#include <vector>

#include "columns.h"
#include "isa.h"
#include "matrix.h"

namespace lstmopt {

struct Direction {
  Matrix w, r;
  bool backward;
  Equations equations;
  Buffer<float> bias;  // [panels, 4, 16]
  Buffer<float> p;     // [panels, 3, 16], or null
  Columns w_columns, r_columns;
};

}  // namespace lstmopt

struct lstmopt_lstm {
  const lstmopt::Isa* isa;
  size_t hidden, input;
  std::vector<lstmopt::Direction> directions;
};
