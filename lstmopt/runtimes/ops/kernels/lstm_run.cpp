// Running a layer: the inputs' part of all steps first, where weights are used for several steps at a
// time, then the recurrent part step by step.
#include <algorithm>
#include <cstring>

#include "lstm.h"
#include "lstmopt_kernels.h"
#include "parallel.h"
#include "refusal.h"
#include "scratch.h"

namespace lstmopt {
namespace {

constexpr size_t kRows = 4 * kLanes;  // of a panel
constexpr size_t kGroup = 4;          // panels whose sums go to the update of the cells together
constexpr size_t kMostColumns = 4;

// The sums of the inputs of as many steps as fit here are made at once: they should stay in the L2 cache.
constexpr size_t kInputBytes = 1 << 20;

class Run {
 public:
  Run(const lstmopt_lstm& layer, const lstmopt_lstm_call& call, const lstmopt_parallel* parallel)
      : layer_(layer), call_(call), parallel_(parallel), panels_(layer.directions[0].w.panels) {
    const size_t column = panels_ * kRows * sizeof(float) * std::max<size_t>(call.batch, 1);
    const size_t most = std::max<size_t>(1, kInputBytes / column);
    const size_t chunks = std::max<size_t>(1, (call.steps + most - 1) / most);
    chunk_ = (call.steps + chunks - 1) / chunks;
  }

  size_t scratch_bytes() const {
    size_t bytes = 0;
    const size_t columns = chunk_ * call_.batch, states = panels_ * kLanes * call_.batch;
    for (const Direction& direction : layer_.directions) {
      bytes = std::max(bytes, aligned(columns * direction.w.state_bytes) + aligned(call_.batch * direction.r.state_bytes));
    }
    return bytes + aligned(columns * panels_ * kRows * 4) + aligned(columns * 4) + aligned(call_.batch * 4) +
           2 * aligned(states * 4);
  }

  void run(Scratch& scratch) {
    const size_t columns = chunk_ * call_.batch, states = panels_ * kLanes * call_.batch;
    sums_ = scratch.take<float>(columns * panels_ * kRows);
    x_scales_ = scratch.take<float>(columns);
    h_scales_ = scratch.take<float>(call_.batch);
    h_ = scratch.take<float>(states);
    c_ = scratch.take<float>(states);
    rest_ = scratch.take<uint8_t>(0);
    for (size_t i = 0; i < layer_.directions.size(); ++i) run_direction(i);
  }

 private:
  void run_direction(size_t number) {
    const Direction& direction = layer_.directions[number];
    x_states_ = rest_;
    h_states_ = rest_ + aligned(chunk_ * call_.batch * direction.w.state_bytes);
    load_state(number, call_.h0, h_);
    load_state(number, call_.c0, c_);
    for (size_t row = 0; row < call_.batch; ++row) encode_state(direction, row);
    for (size_t from = 0; from < call_.steps; from += chunk_) {
      const size_t to = std::min(call_.steps, from + chunk_);
      sum_inputs(direction, from, to);
      for (size_t step = from; step < to; ++step) {
        update(direction, sums_ + (step - from) * call_.batch * panels_ * kRows, step);
        for (size_t row = 0; row < call_.batch; ++row) finish_step(number, step, row);
      }
    }
    store_state(number, h_, call_.y_h);
    store_state(number, c_, call_.y_c);
  }

  size_t length(size_t row) const {
    if (!call_.lengths) return call_.steps;
    return std::min(call_.steps, size_t(std::max(call_.lengths[row], 0)));
  }

  // Where in X and Y the row's step lies: the backward direction begins at the row's own end.
  size_t place(const Direction& direction, size_t step, size_t row) const {
    return direction.backward && step < length(row) ? length(row) - 1 - step : step;
  }

  float* state(float* states, size_t row) const { return states + row * panels_ * kLanes; }

  void load_state(size_t number, const float* given, float* states) const {
    for (size_t row = 0; row < call_.batch; ++row) {
      std::memset(state(states, row), 0, panels_ * kLanes * 4);
      if (given) std::memcpy(state(states, row), given + (number * call_.batch + row) * layer_.hidden, layer_.hidden * 4);
    }
  }

  void store_state(size_t number, float* states, float* result) const {
    for (size_t row = 0; row < call_.batch && result; ++row) {
      std::memcpy(result + (number * call_.batch + row) * layer_.hidden, state(states, row), layer_.hidden * 4);
    }
  }

  void encode_state(const Direction& direction, size_t row) const {
    layer_.isa->encode(direction.r, state(h_, row), h_states_ + row * direction.r.state_bytes, h_scales_ + row);
  }

  // W . x + b of some steps, for every row of the batch.
  void sum_inputs(const Direction& direction, size_t from, size_t to) const {
    const size_t columns = (to - from) * call_.batch, stride = panels_ * kRows;
    for (size_t i = 0; i < columns; ++i) {
      const size_t row = i % call_.batch, step = place(direction, from + i / call_.batch, row);
      layer_.isa->encode(direction.w, call_.x + (step * call_.batch + row) * layer_.input,
                         x_states_ + i * direction.w.state_bytes, x_scales_ + i);
    }
    spread(parallel_, panels_, 1, [&](size_t first, size_t last) {
      // A panel's weights stay in the L1 cache for all columns.
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t i = 0; i < columns;) {
          const size_t count = direction.w_columns.next(columns - i);
          direction.w_columns.run(direction.w, panel, panel + 1, x_states_ + i * direction.w.state_bytes, x_scales_ + i,
                                  count, direction.bias.get(), sums_ + i * stride + panel * kRows, stride);
          i += count;
        }
      }
    });
  }

  // R . h of one step and the cells' update.
  void update(const Direction& direction, const float* sums, size_t step) const {
    spread(parallel_, panels_, kGroup, [&](size_t from, size_t to) {
      alignas(64) float recurrent[kMostColumns * kGroup * kRows];
      for (size_t first = from; first < to; first += kGroup) {
        const size_t last = std::min(to, first + kGroup);
        for (size_t row = 0; row < call_.batch;) {
          const size_t count = direction.r_columns.next(call_.batch - row);
          direction.r_columns.run(direction.r, first, last, h_states_ + row * direction.r.state_bytes, h_scales_ + row, count,
                                  nullptr, recurrent, kGroup * kRows);
          for (size_t i = 0; i < count; ++i, ++row) {
            if (step >= length(row)) continue;
            layer_.isa->cell(direction.equations,
                             Cell{last - first, sums + row * panels_ * kRows + first * kRows, recurrent + i * kGroup * kRows,
                                  direction.p ? direction.p.get() + first * 3 * kLanes : nullptr,
                                  state(c_, row) + first * kLanes, state(h_, row) + first * kLanes});
          }
        }
      }
    });
  }

  void finish_step(size_t number, size_t step, size_t row) const {
    const Direction& direction = layer_.directions[number];
    const bool alive = step < length(row);
    if (call_.y) {
      const size_t at = (place(direction, step, row) * layer_.directions.size() + number) * call_.batch + row;
      if (alive) {
        std::memcpy(call_.y + at * layer_.hidden, state(h_, row), layer_.hidden * 4);
      } else {
        std::memset(call_.y + at * layer_.hidden, 0, layer_.hidden * 4);
      }
    }
    if (alive) encode_state(direction, row);
  }

  const lstmopt_lstm& layer_;
  const lstmopt_lstm_call& call_;
  const lstmopt_parallel* parallel_;
  const size_t panels_;
  size_t chunk_;
  float *sums_, *x_scales_, *h_scales_, *h_, *c_;
  uint8_t *rest_, *x_states_, *h_states_;
};

}  // namespace
}  // namespace lstmopt

int lstmopt_lstm_run(const lstmopt_lstm* layer, const lstmopt_lstm_call* call, const lstmopt_parallel* parallel) {
  return lstmopt::guarded(nullptr, 0, [&] {
    const lstmopt::NoDenormals no_denormals;
    lstmopt::Run run(*layer, *call, parallel);
    lstmopt::Scratch scratch(run.scratch_bytes());
    run.run(scratch);
  });
}
