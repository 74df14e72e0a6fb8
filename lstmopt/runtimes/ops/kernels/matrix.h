// A packed matrix, checked and ready: what the kernels read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace lstmopt {

constexpr size_t kLanes = 16;
constexpr size_t kMostGates = 4;

enum class Format { kF32, kI16Bank32, kI16Bank64, kI8, kI8Planes2, kI8Shared };

constexpr bool has_words(Format format) { return format == Format::kI16Bank32 || format == Format::kI16Bank64; }
constexpr bool has_bytes(Format format) { return format != Format::kF32 && !has_words(format); }

struct Matrix {
  Format format;
  size_t gates, units, columns;
  size_t panels, banks, slots;
  size_t group_bytes;  // of a slot, for one gate
  size_t slot_bytes;
  size_t plane_bytes;  // of one plane of an encoded state
  size_t state_bytes;
  size_t width;
  float limit;  // largest magnitude of an encoded state
  // A panel's sums of words fit in 32 bits for so many slots: parts of so many are added up as floats.
  size_t part;
  bool in_parts;  // some panel has more

  Buffer<uint32_t> start;   // [panels + 1]
  Buffer<uint32_t> offset;  // [slots]: where the slot's bank begins in a plane of a state
  Buffer<float> scale;      // [panels * rows()]
  Buffer<int32_t> origin;   // [panels * rows()]: what takes the states' offset of 128 away (integers only)
  Buffer<uint8_t> data;     // [slots * slot_bytes]

  size_t rows() const { return gates * kLanes; }  // of a panel
};

// Reads the packed matrix at `blob`; `used` becomes its size. Throws Refusal.
Matrix read_matrix(const void* blob, size_t bytes, size_t* used);

}  // namespace lstmopt
