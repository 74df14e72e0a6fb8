// A layer as the kernels run it.
#pragma once

#include <vector>

#include "columns.h"
#include "isa.h"
#include "matrix.h"

namespace lstmopt {

enum class Kind {
  kLstm,
  kGruAfter,   // r . (R h): one product, the sums of gate h apart
  kGruBefore,  // R (r . h): two products, the second of what the first one's gates leave of the state
};

struct Product {
  Matrix matrix;
  Columns columns;
};

struct Direction {
  Product w;
  std::vector<Product> r;  // one, of kGruBefore two: {z, r} and {h}
  bool backward;
  Equations equations;
  Buffer<float> bias;    // [panels, gates, 16], of the inputs' sums
  Buffer<float> r_bias;  // [panels, gates, 16], of the recurrent sums, or null
  Buffer<float> p;       // [panels, 3, 16], or null
};

}  // namespace lstmopt

struct lstmopt_layer {
  const lstmopt::Isa* isa;
  lstmopt::Kind kind;
  size_t hidden, input;
  std::vector<lstmopt::Direction> directions;
};
