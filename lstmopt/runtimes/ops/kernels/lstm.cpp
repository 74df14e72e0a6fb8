// Making a layer: everything is checked here.
#include "lstm.h"

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

Matrix read_gates(const char* name, const void* blob, size_t bytes, size_t& at) {
  size_t used = 0;
  if (!blob || at > bytes) throw Refusal{std::string(name) + " is missing"};
  Matrix matrix = read_matrix(static_cast<const uint8_t*>(blob) + at, bytes - at, &used);
  if (matrix.gates != 4) throw Refusal{std::string(name) + " is not packed for an LSTM's four gates"};
  at += used;
  return matrix;
}

lstmopt_lstm* create(const lstmopt_lstm_config& config) {
  if (config.direction < LSTMOPT_FORWARD || config.direction > LSTMOPT_BIDIRECTIONAL) throw Refusal{"unknown direction"};
  const size_t directions = config.direction == LSTMOPT_BIDIRECTIONAL ? 2 : 1;
  const std::vector<Equations> equations = read_equations(config, directions);
  auto layer = std::make_unique<lstmopt_lstm>();
  layer->isa = &current_isa();
  size_t w_at = 0, r_at = 0;
  for (size_t i = 0; i < directions; ++i) {
    Matrix w = read_gates("W", config.w, config.w_bytes, w_at), r = read_gates("R", config.r, config.r_bytes, r_at);
    const size_t hidden = r.units;
    if (r.columns != hidden) throw Refusal{"R is not square"};
    if (w.units != hidden) throw Refusal{"W and R have different hidden sizes"};
    if (i == 0) layer->hidden = hidden, layer->input = w.columns;
    if (hidden != layer->hidden || w.columns != layer->input) throw Refusal{"the directions have different sizes"};
    if (config.hidden_size && config.hidden_size != int64_t(hidden)) {
      throw Refusal{"hidden_size is " + std::to_string(config.hidden_size) + ", the weights have " + std::to_string(hidden)};
    }
    if (config.b) check_values("B", config.b, config.b_count, directions * 8 * hidden);
    if (config.p) check_values("P", config.p, config.p_count, directions * 3 * hidden);
    std::vector<float> bias(4 * hidden);
    for (size_t row = 0; row < 4 * hidden && config.b; ++row) {
      bias[row] = config.b[i * 8 * hidden + row] + config.b[(i * 8 + 4) * hidden + row];
    }
    const size_t panels = w.panels;
    Columns w_columns(*layer->isa, w), r_columns(*layer->isa, r);
    layer->directions.push_back(Direction{
        std::move(w), std::move(r), config.direction == LSTMOPT_REVERSE || i == 1, equations[i],
        to_panels(bias.data(), 4, hidden, panels),
        config.p ? to_panels(config.p + i * 3 * hidden, 3, hidden, panels) : Buffer<float>(), w_columns, r_columns});
  }
  if (w_at != config.w_bytes || r_at != config.r_bytes) throw Refusal{"W or R holds more than the directions' weights"};
  return layer.release();
}

}  // namespace
}  // namespace lstmopt

int lstmopt_lstm_create(const lstmopt_lstm_config* config, lstmopt_lstm** layer, char* error, size_t error_bytes) {
  return lstmopt::guarded(error, error_bytes, [&] { *layer = lstmopt::create(*config); });
}

void lstmopt_lstm_destroy(lstmopt_lstm* layer) { delete layer; }

size_t lstmopt_lstm_directions(const lstmopt_lstm* layer) { return layer->directions.size(); }

size_t lstmopt_lstm_hidden(const lstmopt_lstm* layer) { return layer->hidden; }

size_t lstmopt_lstm_input(const lstmopt_lstm* layer) { return layer->input; }
