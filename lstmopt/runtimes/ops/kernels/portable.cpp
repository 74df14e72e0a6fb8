// Plain C++, right on any machine.
#include <math.h>

#include "isa.h"

namespace lstmopt {
namespace {

#include "cell.inl"
#include "encode.inl"

// One row's value of an encoded state.
inline uint32_t at16(const uint8_t* bank, size_t index) {
  int16_t word;
  __builtin_memcpy(&word, bank + 2 * index, 2);
  return uint32_t(int32_t(word));
}

// Adds the products of a slot for one gate; sums of integers wrap, and come out right all the same.
template <Format F>
void add(const Matrix& matrix, const uint8_t* slot, size_t gate, const uint8_t* bank, float* sums, uint32_t* whole,
         uint32_t* low) {
  const uint8_t* group = slot + gate * matrix.group_bytes;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    if constexpr (F == Format::kF32) {
      uint32_t word;
      float value, state;
      __builtin_memcpy(&word, group + 4 * lane, 4);
      __builtin_memcpy(&value, group + 4 * lane, 4);
      __builtin_memcpy(&state, bank + 4 * (word & 31), 4);
      sums[lane] += value * state;
    } else if constexpr (F == Format::kI16Bank32 || F == Format::kI16Bank64) {
      for (size_t entry = 0; entry < 2; ++entry) {
        const uint32_t word = at16(group, 2 * lane + entry);
        whole[lane] += word * at16(bank, word & (F == Format::kI16Bank32 ? 31 : 63));
      }
    } else {
      const uint8_t* index = F == Format::kI8Shared ? slot : group + 64;
      const uint8_t* value = F == Format::kI8Shared ? group + 64 : group;
      for (size_t entry = 4 * lane; entry < 4 * lane + 4; ++entry) {
        const uint32_t weight = uint32_t(int32_t(int8_t(value[entry])));
        whole[lane] += weight * bank[index[entry] & 63];
        if constexpr (F == Format::kI8Planes2) low[lane] += weight * bank[matrix.plane_bytes + (index[entry] & 63)];
      }
    }
  }
}

template <Format F>
void dot(const Matrix& matrix, const Dot& call) {
  const size_t rows = matrix.rows();
  for (size_t panel = call.first; panel < call.last; ++panel) {
    for (size_t gate = 0; gate < matrix.gates; ++gate) {
      const size_t row = panel * rows + gate * kLanes;
      float sums[kLanes] = {};
      uint32_t whole[kLanes] = {}, low[kLanes] = {};
      for (size_t lane = 0; lane < kLanes && F != Format::kF32; ++lane) whole[lane] = uint32_t(matrix.origin[row + lane]);
      size_t left = matrix.part;
      for (size_t slot = matrix.start[panel]; slot < matrix.start[panel + 1]; ++slot, --left) {
        if (F != Format::kF32 && !left) {
          for (size_t lane = 0; lane < kLanes; ++lane) {
            sums[lane] += float(int32_t(whole[lane]));
            whole[lane] = 0;
          }
          left = matrix.part;
        }
        add<F>(matrix, &matrix.data[slot * matrix.slot_bytes], gate, call.states[0] + matrix.offset[slot], sums, whole, low);
      }
      float* out = call.out + (panel - call.first) * rows + gate * kLanes;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        float sum = sums[lane];
        if constexpr (F != Format::kF32) {
          sum += float(int32_t(whole[lane]));
          if constexpr (F == Format::kI8Planes2) sum = sum * 128.0f + float(int32_t(low[lane]));
          sum *= matrix.scale[row + lane] * call.scales[0];
        }
        out[lane] = sum + (call.bias ? call.bias[row + lane] : 0.0f);
      }
    }
  }
}

DotFunction find_dot(const Matrix& matrix, size_t) {
  switch (matrix.format) {
    case Format::kF32: return dot<Format::kF32>;
    case Format::kI16Bank32: return dot<Format::kI16Bank32>;
    case Format::kI16Bank64: return dot<Format::kI16Bank64>;
    case Format::kI8: return dot<Format::kI8>;
    case Format::kI8Planes2: return dot<Format::kI8Planes2>;
    default: return dot<Format::kI8Shared>;
  }
}

bool always() { return true; }

}  // namespace

const Isa kPortable = {"portable", always, 1, encode, find_dot, cell, gru, gru_gates, gru_state};

}  // namespace lstmopt
