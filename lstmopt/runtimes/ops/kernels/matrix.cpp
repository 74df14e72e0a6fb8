// Reading packed weights. They may come from anyone: every count, index and size is checked here, once,
// so that the kernels need not.
#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "refusal.h"

namespace lstmopt {
namespace {

struct Header {
  char magic[8];
  uint16_t version, format, width, gates;
  uint32_t units, columns, slots;
  uint16_t planes, reserved;
  uint64_t size, nonzeros;
  uint8_t digest[16];  // tells matrices apart; not of interest here
};
static_assert(sizeof(Header) == 64, "the header has no padding");

constexpr uint16_t kVersion = 1;
constexpr uint32_t kMostUnits = 1u << 24;
constexpr uint32_t kMostColumns = 1u << 22;
// 65536 products of an unsigned byte and -128 are the most that 32 bits hold.
constexpr uint32_t kMostEntries = 65536;
// The least range of a state of words: where sums of whole rows would leave it less, rows are summed in
// parts. With this one the state is as exact as the weights; 4096 cost rows of 512 columns 4% of their speed.
constexpr uint64_t kLeastLimit = 2048;

[[noreturn]] void refuse(const std::string& fault) { throw Refusal{"packed weights " + fault}; }

Format format_of(const Header& header) {
  const auto is = [&](int format, int width, int planes) {
    return header.format == format && header.width == width && header.planes == planes;
  };
  if (is(1, 32, 1)) return Format::kF32;
  if (is(2, 32, 1)) return Format::kI16Bank32;
  if (is(2, 64, 1)) return Format::kI16Bank64;
  if (is(3, 64, 1)) return Format::kI8;
  if (is(3, 64, 2)) return Format::kI8Planes2;
  if (is(4, 64, 1) && header.gates > 1) return Format::kI8Shared;
  refuse("are of an unknown format");
}

void set_sizes(Matrix& matrix, const Header& header) {
  const bool f32 = matrix.format == Format::kF32, shared = matrix.format == Format::kI8Shared;
  const bool words = has_words(matrix.format);
  matrix.gates = header.gates;
  matrix.units = header.units;
  matrix.columns = header.columns;
  matrix.width = header.width;
  matrix.slots = header.slots;
  matrix.panels = (matrix.units + kLanes - 1) / kLanes;
  matrix.banks = (matrix.columns + matrix.width - 1) / matrix.width;
  matrix.group_bytes = has_bytes(matrix.format) && !shared ? 128 : 64;
  matrix.slot_bytes = matrix.gates * matrix.group_bytes + (shared ? 64 : 0);
  matrix.plane_bytes = matrix.banks * matrix.width * (f32 ? 4 : words ? 2 : 1);
  matrix.state_bytes = matrix.plane_bytes * header.planes;
  matrix.limit = f32 ? 1.0f : words ? 32767.0f : header.planes == 2 ? 16383.0f : 127.0f;
}

// Takes sections one after another.
class Sections {
 public:
  Sections(const uint8_t* at, size_t left) : at_(at), left_(left) {}

  template <class T>
  Buffer<T> take(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (aligned(bytes) > left_) refuse("do not have the size that they name");
    Buffer<T> copy = allocate<T>(count);
    if (bytes) std::memcpy(copy.get(), at_, bytes);
    at_ += aligned(bytes);
    left_ -= aligned(bytes);
    return copy;
  }

  size_t left() const { return left_; }

 private:
  const uint8_t* at_;
  size_t left_;
};

void check_slots(const Matrix& matrix, const uint16_t* banks) {
  const size_t quad = matrix.gates == 1 ? 4 : 1;
  const size_t entries = has_words(matrix.format) ? 2 : has_bytes(matrix.format) ? 4 : 1;
  if (matrix.start[0] != 0 || matrix.start[matrix.panels] != matrix.slots) refuse("have slots that belong to no panel");
  for (size_t panel = 0; panel < matrix.panels; ++panel) {
    const uint32_t from = matrix.start[panel], to = matrix.start[panel + 1];
    if (from > to || to > matrix.slots) refuse("have slots that belong to no panel");
    if ((to - from) % quad) refuse("have a panel of a wrong number of slots");
    if ((to - from) * uint64_t(entries) > kMostEntries) refuse("have more entries in a row than the kernels can add");
  }
  for (size_t slot = 0; slot < matrix.slots; ++slot) {
    if (banks[slot] >= matrix.banks) refuse("have a bank out of range");
  }
}

// Calls visit(row, column in the bank, value) for every entry of a slot; rows count from the panel's first.
template <class Visit>
void visit_slot(const Matrix& matrix, size_t slot, Visit visit) {
  const uint8_t* data = &matrix.data[slot * matrix.slot_bytes];
  for (size_t gate = 0; gate < matrix.gates; ++gate) {
    const uint8_t* group = data + gate * matrix.group_bytes;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t row = gate * kLanes + lane;
      if (matrix.format == Format::kF32) {
        uint32_t word;
        float value;
        std::memcpy(&word, group + 4 * lane, 4);
        std::memcpy(&value, group + 4 * lane, 4);
        if (!std::isfinite(value)) refuse("hold a weight that is not finite");
        visit(row, word & 31, 0);
      } else if (has_words(matrix.format)) {
        for (size_t entry = 0; entry < 2; ++entry) {
          int16_t word;
          std::memcpy(&word, group + 4 * lane + 2 * entry, 2);
          visit(row, uint16_t(word) & (matrix.width - 1), word);
        }
      } else {
        const bool shared = matrix.format == Format::kI8Shared;
        const uint8_t* index = shared ? data : group + 64;
        const uint8_t* value = shared ? group + 64 : group;
        for (size_t entry = 4 * lane; entry < 4 * lane + 4; ++entry) visit(row, index[entry], int8_t(value[entry]));
      }
    }
  }
}

// Checks every index, and derives from the weights what sums can reach.
void check_entries(Matrix& matrix, const uint16_t* banks) {
  const size_t rows = matrix.rows();
  const bool integers = matrix.format != Format::kF32;
  matrix.origin = allocate<int32_t>(integers ? matrix.panels * rows : 0);
  for (size_t panel = 0; panel < matrix.panels; ++panel) {
    int64_t sums[kMostGates * kLanes] = {};
    for (size_t slot = matrix.start[panel]; slot < matrix.start[panel + 1]; ++slot) {
      const size_t first = banks[slot] * matrix.width;
      visit_slot(matrix, slot, [&](size_t row, size_t index, int32_t value) {
        if (index >= matrix.width || first + index >= matrix.columns) refuse("have an index out of range");
        sums[row] += value;
      });
    }
    for (size_t row = 0; row < rows && integers; ++row) {
      matrix.origin[panel * rows + row] = has_bytes(matrix.format) ? int32_t(-128 * sums[row]) : 0;
    }
  }
}

// The largest sum of a row's magnitudes over a part, of words.
uint64_t largest_sum(const Matrix& matrix, size_t part) {
  uint64_t largest = 1;
  for (size_t panel = 0; panel < matrix.panels; ++panel) {
    const size_t end = matrix.start[panel + 1];
    for (size_t from = matrix.start[panel]; from < end; from += part) {
      uint64_t magnitudes[kMostGates * kLanes] = {};
      for (size_t slot = from; slot < std::min(end, from + part); ++slot) {
        visit_slot(matrix, slot, [&](size_t row, size_t, int32_t value) {
          magnitudes[row] += uint64_t(std::abs(value));
        });
      }
      largest = std::max(largest, *std::max_element(magnitudes, magnitudes + kMostGates * kLanes));
    }
  }
  return largest;
}

// The state's scale leaves room in 32 bits for the fullest row, or the fullest part of one.
void set_limit(Matrix& matrix) {
  size_t most = 1;
  for (size_t panel = 0; panel < matrix.panels; ++panel) {
    most = std::max<size_t>(most, matrix.start[panel + 1] - matrix.start[panel]);
  }
  matrix.part = most;
  matrix.in_parts = false;
  if (!has_words(matrix.format)) return;
  const size_t quad = 4;  // plain matrices have their slots in fours
  uint64_t limit = 2147483647 / largest_sum(matrix, matrix.part);
  while (limit < kLeastLimit && matrix.part > quad) {
    matrix.part = ((matrix.part + 1) / 2 + quad - 1) / quad * quad;
    limit = 2147483647 / largest_sum(matrix, matrix.part);
  }
  matrix.in_parts = matrix.part < most;
  matrix.limit = float(std::min<uint64_t>(limit, 32767));
}

}  // namespace

Matrix read_matrix(const void* blob, size_t bytes, size_t* used) {
  Header header;
  if (bytes < sizeof header) refuse("are cut off");
  std::memcpy(&header, blob, sizeof header);
  if (std::memcmp(header.magic, "LSTMOPTW", 8)) refuse("are not of lstmopt (or of a machine of another byte order)");
  if (header.version != kVersion) {
    refuse("are of version " + std::to_string(header.version) + ", this library reads version " + std::to_string(kVersion));
  }
  if (header.gates < 1 || header.gates > kMostGates || !header.units || !header.columns || header.units > kMostUnits ||
      header.columns > kMostColumns || header.reserved) {
    refuse("have an impossible shape");
  }
  if (header.size > bytes || header.size < sizeof header || header.size % kAlignment) refuse("do not have the size that they name");

  Matrix matrix;
  matrix.format = format_of(header);
  set_sizes(matrix, header);
  Sections sections(static_cast<const uint8_t*>(blob) + sizeof header, size_t(header.size) - sizeof header);
  matrix.start = sections.take<uint32_t>(matrix.panels + 1);
  const Buffer<uint16_t> banks = sections.take<uint16_t>(matrix.slots);
  matrix.scale = sections.take<float>(matrix.format == Format::kF32 ? 0 : matrix.panels * matrix.rows());
  matrix.data = sections.take<uint8_t>(matrix.slots * matrix.slot_bytes);
  if (sections.left()) refuse("do not have the size that they name");

  check_slots(matrix, banks.get());
  if (matrix.format != Format::kF32) {
    for (size_t row = 0; row < matrix.panels * matrix.rows(); ++row) {
      if (!(matrix.scale[row] >= 0.0f && matrix.scale[row] < 1e30f)) refuse("have a scale that is negative or not finite");
    }
  }
  check_entries(matrix, banks.get());
  set_limit(matrix);
  matrix.offset = allocate<uint32_t>(matrix.slots);
  for (size_t slot = 0; slot < matrix.slots; ++slot) {
    matrix.offset[slot] = uint32_t(banks[slot] * (matrix.plane_bytes / matrix.banks));
  }
  *used = size_t(header.size);
  return matrix;
}

}  // namespace lstmopt
