// Running a layer: the inputs' part of all steps first, where weights are used for several steps at a
// time, then the recurrent part step by step.
#include <algorithm>
#include <cstring>

#include "layer.h"
#include "lstmopt_kernels.h"
#include "parallel.h"
#include "refusal.h"
#include "scratch.h"

namespace lstmopt {
namespace {

constexpr size_t kGroup = 4;          // panels whose sums go to the update of the cells together
constexpr size_t kMostColumns = 4;

// The sums of the inputs of as many steps as fit here are made at once: they should stay in the L2 cache.
constexpr size_t kInputBytes = 1 << 20;

class Run {
 public:
  Run(const lstmopt_layer& layer, const lstmopt_layer_call& call, const lstmopt_parallel* parallel)
      : layer_(layer), call_(call), parallel_(parallel), panels_(layer.directions[0].w.matrix.panels),
        rows_(layer.directions[0].w.matrix.rows()) {
    const size_t column = panels_ * rows_ * sizeof(float) * std::max<size_t>(call.batch, 1);
    const size_t most = std::max<size_t>(1, kInputBytes / column);
    const size_t chunks = std::max<size_t>(1, (call.steps + most - 1) / most);
    chunk_ = (call.steps + chunks - 1) / chunks;
  }

  size_t scratch_bytes() const {
    size_t bytes = 0;
    const size_t columns = chunk_ * call_.batch, states = panels_ * kLanes * call_.batch;
    for (const Direction& direction : layer_.directions) {
      bytes = std::max(bytes, aligned(columns * direction.w.matrix.state_bytes) + state_bytes(direction));
    }
    return bytes + aligned(columns * panels_ * rows_ * 4) + aligned(columns * 4) + aligned(call_.batch * 4) +
           3 * aligned(states * 4);
  }

  void run(Scratch& scratch) {
    const size_t columns = chunk_ * call_.batch, states = panels_ * kLanes * call_.batch;
    sums_ = scratch.take<float>(columns * panels_ * rows_);
    x_scales_ = scratch.take<float>(columns);
    h_scales_ = scratch.take<float>(call_.batch);
    h_ = scratch.take<float>(states);
    c_ = scratch.take<float>(states);
    read_ = scratch.take<float>(states);
    rest_ = scratch.take<uint8_t>(0);
    for (size_t i = 0; i < layer_.directions.size(); ++i) run_direction(i);
  }

 private:
  // Of the encoded states of the batch, for whichever product of R takes more.
  size_t state_bytes(const Direction& direction) const {
    size_t most = 0;
    for (const Product& r : direction.r) most = std::max(most, r.matrix.state_bytes);
    return aligned(call_.batch * most);
  }

  void run_direction(size_t number) {
    const Direction& direction = layer_.directions[number];
    x_states_ = rest_;
    h_states_ = rest_ + aligned(chunk_ * call_.batch * direction.w.matrix.state_bytes);
    load_state(number, call_.h0, h_);
    if (layer_.kind == Kind::kLstm) load_state(number, call_.c0, c_);
    for (size_t row = 0; row < call_.batch; ++row) encode_state(direction.r[0], h_, row);
    for (size_t from = 0; from < call_.steps; from += chunk_) {
      const size_t to = std::min(call_.steps, from + chunk_);
      sum_inputs(direction, from, to);
      for (size_t step = from; step < to; ++step) {
        update(direction, sums_ + (step - from) * call_.batch * panels_ * rows_, step);
        for (size_t row = 0; row < call_.batch; ++row) finish_step(number, step, row);
      }
    }
    store_state(number, h_, call_.y_h);
    if (layer_.kind == Kind::kLstm) store_state(number, c_, call_.y_c);
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

  // A sequence of length 0 leaves zeros, whatever it was given: ONNX does not say, ONNX Runtime does so.
  void load_state(size_t number, const float* given, float* states) const {
    for (size_t row = 0; row < call_.batch; ++row) {
      std::memset(state(states, row), 0, panels_ * kLanes * 4);
      if (!given || !length(row)) continue;
      std::memcpy(state(states, row), given + (number * call_.batch + row) * layer_.hidden, layer_.hidden * 4);
    }
  }

  void store_state(size_t number, float* states, float* result) const {
    for (size_t row = 0; row < call_.batch && result; ++row) {
      std::memcpy(result + (number * call_.batch + row) * layer_.hidden, state(states, row), layer_.hidden * 4);
    }
  }

  void encode_state(const Product& r, float* states, size_t row) const {
    layer_.isa->encode(r.matrix, state(states, row), h_states_ + row * r.matrix.state_bytes, h_scales_ + row);
  }

  // W . x + b of some steps, for every row of the batch.
  void sum_inputs(const Direction& direction, size_t from, size_t to) const {
    const Matrix& w = direction.w.matrix;
    const size_t columns = (to - from) * call_.batch, stride = panels_ * rows_;
    for (size_t i = 0; i < columns; ++i) {
      const size_t row = i % call_.batch, step = place(direction, from + i / call_.batch, row);
      layer_.isa->encode(w, call_.x + (step * call_.batch + row) * layer_.input, x_states_ + i * w.state_bytes, x_scales_ + i);
    }
    spread(parallel_, panels_, 1, [&](size_t first, size_t last) {
      // A panel's weights stay in the L1 cache for all columns.
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t i = 0; i < columns;) {
          const size_t count = direction.w.columns.next(columns - i);
          direction.w.columns.run(w, panel, panel + 1, x_states_ + i * w.state_bytes, x_scales_ + i, count,
                                  direction.bias.get(), sums_ + i * stride + panel * rows_, stride);
          i += count;
        }
      }
    });
  }

  // R . h of one step; use(row, first panel, panels, their sums) for every row of the batch that has such a step.
  template <class Use>
  void sum_states(const Product& r, const float* bias, size_t step, const Use& use) const {
    const size_t rows = r.matrix.rows();
    spread(parallel_, panels_, kGroup, [&](size_t from, size_t to) {
      alignas(64) float sums[kMostColumns * kGroup * kMostGates * kLanes];
      for (size_t first = from; first < to; first += kGroup) {
        const size_t last = std::min(to, first + kGroup);
        for (size_t row = 0; row < call_.batch;) {
          const size_t count = r.columns.next(call_.batch - row);
          r.columns.run(r.matrix, first, last, h_states_ + row * r.matrix.state_bytes, h_scales_ + row, count, bias, sums,
                        kGroup * rows);
          for (size_t i = 0; i < count; ++i, ++row) {
            if (step < length(row)) use(row, first, last - first, sums + i * kGroup * rows);
          }
        }
      }
    });
  }

  // The recurrent part of one step.
  void update(const Direction& direction, const float* sums, size_t step) const {
    const Isa& isa = *layer_.isa;
    const Equations& equations = direction.equations;
    const auto inputs = [&](size_t row, size_t panel) { return sums + (row * panels_ + panel) * rows_; };
    if (layer_.kind == Kind::kLstm) {
      sum_states(direction.r[0], nullptr, step, [&](size_t row, size_t first, size_t panels, const float* recurrent) {
        isa.cell(equations, Cell{panels, inputs(row, first), recurrent,
                                 direction.p ? direction.p.get() + first * 3 * kLanes : nullptr,
                                 state(c_, row) + first * kLanes, state(h_, row) + first * kLanes});
      });
      return;
    }
    const auto cell = [&](size_t row, size_t first, size_t panels, const float* recurrent) {
      return GruCell{panels, inputs(row, first), recurrent, state(c_, row) + first * kLanes,
                     state(read_, row) + first * kLanes, state(h_, row) + first * kLanes};
    };
    if (layer_.kind == Kind::kGruAfter) {
      sum_states(direction.r[0], direction.r_bias.get(), step,
                 [&](size_t row, size_t first, size_t panels, const float* recurrent) {
                   isa.gru(equations, cell(row, first, panels, recurrent));
                 });
      return;
    }
    sum_states(direction.r[0], nullptr, step, [&](size_t row, size_t first, size_t panels, const float* recurrent) {
      isa.gru_gates(equations, cell(row, first, panels, recurrent));
    });
    for (size_t row = 0; row < call_.batch; ++row) {
      if (step < length(row)) encode_state(direction.r[1], read_, row);
    }
    sum_states(direction.r[1], nullptr, step, [&](size_t row, size_t first, size_t panels, const float* recurrent) {
      isa.gru_state(equations, cell(row, first, panels, recurrent));
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
    if (alive) encode_state(direction.r[0], h_, row);
  }

  const lstmopt_layer& layer_;
  const lstmopt_layer_call& call_;
  const lstmopt_parallel* parallel_;
  const size_t panels_, rows_;  // rows_: of a panel of W
  size_t chunk_;
  float *sums_, *x_scales_, *h_scales_;
  float *h_, *c_, *read_;  // of a GRU whose reset comes before the product: c_ holds z, read_ what R_h reads
  uint8_t *rest_, *x_states_, *h_states_;
};

}  // namespace
}  // namespace lstmopt

int lstmopt_layer_run(const lstmopt_layer* layer, const lstmopt_layer_call* call, const lstmopt_parallel* parallel) {
  return lstmopt::guarded(nullptr, 0, [&] {
    const lstmopt::NoDenormals no_denormals;
    lstmopt::Run run(*layer, *call, parallel);
    lstmopt::Scratch scratch(run.scratch_bytes());
    run.run(scratch);
  });
}
