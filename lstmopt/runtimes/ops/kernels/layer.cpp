// Making a layer: everything is checked here.
#include "layer.h"

#include <cmath>
#include <new>

#include "equations.h"
#include "lstmopt_kernels.h"
#include "refusal.h"

namespace lstmopt {
namespace {

void check_values(const char* name, const float* values, size_t count, size_t expected) {
  if (count != expected) {
    throw Refusal{std::string(name) + " has " + std::to_string(count) + " values, expected " + std::to_string(expected)};
  }
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) throw Refusal{std::string(name) + " holds a value that is not finite"};
  }
}

// Puts vectors [count, hidden] in the order of panels, [panels, count, 16], zeros in the last panel's rest.
Buffer<float> to_panels(const float* values, size_t count, size_t hidden, size_t panels) {
  Buffer<float> result = allocate<float>(panels * count * kLanes);
  for (size_t panel = 0; panel < panels; ++panel) {
    for (size_t i = 0; i < count * kLanes; ++i) {
      const size_t unit = panel * kLanes + i % kLanes;
      result[panel * count * kLanes + i] = unit < hidden ? values[i / kLanes * hidden + unit] : 0.0f;
    }
  }
  return result;
}

// Reads the next matrix of a blob, which has to be packed for so many gates.
Product read_product(const Isa& isa, const char* name, const void* blob, size_t bytes, size_t& at, size_t gates) {
  size_t used = 0;
  if (!blob || at > bytes) throw Refusal{std::string(name) + " is missing"};
  Matrix matrix = read_matrix(static_cast<const uint8_t*>(blob) + at, bytes - at, &used);
  if (matrix.gates != gates) {
    throw Refusal{std::string(name) + " is packed for " + std::to_string(matrix.gates) + " gates, expected " +
                  std::to_string(gates)};
  }
  at += used;
  const Columns columns(isa, matrix);
  return Product{std::move(matrix), columns};
}

Kind kind_of(const lstmopt_layer_config& config) {
  if (config.cell == LSTMOPT_LSTM) {
    if (config.linear_before_reset) throw Refusal{"linear_before_reset is for a GRU"};
    return Kind::kLstm;
  }
  if (config.cell != LSTMOPT_GRU) throw Refusal{"unknown cell"};
  if (config.p || config.input_forget) throw Refusal{"P and input_forget are for an LSTM"};
  return config.linear_before_reset ? Kind::kGruAfter : Kind::kGruBefore;
}

// The packed matrices of R and how many gates each has.
std::vector<size_t> gates_of_r(Kind kind) {
  if (kind == Kind::kGruBefore) return {2, 1};
  return {kind == Kind::kLstm ? size_t(4) : size_t(3)};
}

// Both biases of a direction, [2, gates, hidden], as the sums take them: added up, but for that of R of a gate
// whose product is multiplied by another gate.
void set_biases(Direction& direction, Kind kind, const float* b, size_t gates, size_t hidden) {
  std::vector<float> inputs(gates * hidden), recurrent(gates * hidden);
  const size_t summed = kind == Kind::kGruAfter ? (gates - 1) * hidden : gates * hidden;
  for (size_t row = 0; row < gates * hidden && b; ++row) {
    const float own = b[row], other = b[gates * hidden + row];
    inputs[row] = row < summed ? own + other : own;
    recurrent[row] = row < summed ? 0.0f : other;
  }
  const size_t panels = direction.w.matrix.panels;
  direction.bias = to_panels(inputs.data(), gates, hidden, panels);
  if (kind == Kind::kGruAfter) direction.r_bias = to_panels(recurrent.data(), gates, hidden, panels);
}

lstmopt_layer* create(const lstmopt_layer_config& config) {
  if (config.direction < LSTMOPT_FORWARD || config.direction > LSTMOPT_BIDIRECTIONAL) throw Refusal{"unknown direction"};
  const size_t directions = config.direction == LSTMOPT_BIDIRECTIONAL ? 2 : 1;
  const Kind kind = kind_of(config);
  const size_t gates = kind == Kind::kLstm ? 4 : 3;
  const std::vector<Equations> equations = read_equations(config, directions);
  auto layer = std::make_unique<lstmopt_layer>();
  const Isa& isa = current_isa();
  layer->isa = &isa;
  layer->kind = kind;
  size_t w_at = 0, r_at = 0;
  for (size_t i = 0; i < directions; ++i) {
    Direction direction = {};
    direction.w = read_product(isa, "W", config.w, config.w_bytes, w_at, gates);
    for (const size_t count : gates_of_r(kind)) {
      direction.r.push_back(read_product(isa, "R", config.r, config.r_bytes, r_at, count));
    }
    const size_t hidden = direction.r[0].matrix.units, input = direction.w.matrix.columns;
    for (const Product& r : direction.r) {
      if (r.matrix.columns != hidden || r.matrix.units != hidden) throw Refusal{"R is not square"};
    }
    if (direction.w.matrix.units != hidden) throw Refusal{"W and R have different hidden sizes"};
    if (i == 0) layer->hidden = hidden, layer->input = input;
    if (hidden != layer->hidden || input != layer->input) throw Refusal{"the directions have different sizes"};
    if (config.hidden_size && config.hidden_size != int64_t(hidden)) {
      throw Refusal{"hidden_size is " + std::to_string(config.hidden_size) + ", the weights have " + std::to_string(hidden)};
    }
    if (config.b) check_values("B", config.b, config.b_count, directions * 2 * gates * hidden);
    if (config.p) check_values("P", config.p, config.p_count, directions * 3 * hidden);
    direction.backward = config.direction == LSTMOPT_REVERSE || i == 1;
    direction.equations = equations[i];
    set_biases(direction, kind, config.b ? config.b + i * 2 * gates * hidden : nullptr, gates, hidden);
    if (config.p) direction.p = to_panels(config.p + i * 3 * hidden, 3, hidden, direction.w.matrix.panels);
    layer->directions.push_back(std::move(direction));
  }
  if (w_at != config.w_bytes || r_at != config.r_bytes) throw Refusal{"W or R holds more than the directions' weights"};
  return layer.release();
}

}  // namespace
}  // namespace lstmopt

int lstmopt_layer_create(const lstmopt_layer_config* config, lstmopt_layer** layer, char* error, size_t error_bytes) {
  return lstmopt::guarded(error, error_bytes, [&] { *layer = lstmopt::create(*config); });
}

void lstmopt_layer_destroy(lstmopt_layer* layer) { delete layer; }

size_t lstmopt_layer_directions(const lstmopt_layer* layer) { return layer->directions.size(); }

size_t lstmopt_layer_hidden(const lstmopt_layer* layer) { return layer->hidden; }

size_t lstmopt_layer_input(const lstmopt_layer* layer) { return layer->input; }
