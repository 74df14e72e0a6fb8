// Random packed weights and the dense matrix that they stand for, made from the format's description
// alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace testing {

struct Kind {
  const char* name;
  int format, width, planes;
  double error;  // bound on the mean layer's, against the rounded weights; on any, three times as much
};

constexpr Kind kKinds[] = {
    {"f32", 1, 32, 1, 3e-6},       {"i16", 2, 32, 1, 6e-4},        {"i16-bank64", 2, 64, 1, 6e-4},
    {"i8", 3, 64, 1, 1.2e-2}, {"i8-planes2", 3, 64, 2, 3e-4}, {"i8-shared", 4, 64, 1, 1.2e-2},
};

struct Packed {
  std::vector<uint8_t> blob;
  std::vector<double> dense;  // [gates, units, columns]
};

using Random = std::mt19937;

inline int between(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

inline float normal(Random& random) { return std::normal_distribution<float>()(random); }

template <class T>
void append(std::vector<uint8_t>& blob, const std::vector<T>& values) {
  const size_t at = blob.size();
  blob.resize(at + (values.size() * sizeof(T) + 63) / 64 * 64);
  if (!values.empty()) std::memcpy(&blob[at], values.data(), values.size() * sizeof(T));
}

// `slots`: the most slots of a panel's bank.
inline Packed random_blob(Random& random, const Kind& kind, int gates, int units, int columns, int slots) {
  const int panels = (units + 15) / 16, banks = (columns + kind.width - 1) / kind.width;
  std::vector<uint32_t> start{0};
  std::vector<uint16_t> bank;
  for (int panel = 0; panel < panels; ++panel) {
    for (int b = 0; b < banks; ++b) bank.insert(bank.end(), between(random, 0, slots), uint16_t(b));
    while (gates == 1 && (bank.size() - start.back()) % 4) bank.push_back(0);
    start.push_back(uint32_t(bank.size()));
  }
  const bool f32 = kind.format == 1, i16 = kind.format == 2, shared = kind.format == 4;
  std::vector<float> scale(f32 ? 0 : panels * gates * 16);
  // Weights of the size that trained ones have: rows' sums stay of order 1.
  const double size = 1.0 / std::sqrt(1.0 + slots * banks * (f32 ? 1 : i16 ? 2 : 4));
  for (float& item : scale) item = float(size * std::exp(0.3 * normal(random)) / (i16 ? 32767.0 : 127.0) * 2);
  const size_t group = i16 || f32 || shared ? 64 : 128, bytes = gates * group + (shared ? 64 : 0);
  std::vector<uint8_t> data(bank.size() * bytes);
  std::vector<double> dense(size_t(gates) * units * columns);
  for (int panel = 0; panel < panels; ++panel) {
    for (uint32_t s = start[panel]; s < start[panel + 1]; ++s) {
      uint8_t* slot = &data[s * bytes];
      const int room = std::min(kind.width, columns - bank[s] * kind.width);
      for (int lane = 0; lane < 16; ++lane) {
        const int unit = panel * 16 + lane;
        for (int entry = 0; entry < (f32 ? 1 : i16 ? 2 : 4); ++entry) {
          int index = between(random, 0, room - 1);
          for (int gate = 0; gate < gates; ++gate) {
            if (!shared) index = between(random, 0, room - 1);
            uint8_t* own = slot + (shared ? 64 : 0) + gate * group;
            double value = 0;
            const bool empty = between(random, 0, 9) == 0 || unit >= units;
            if (f32) {
              const float weight = float(size * normal(random));
              uint32_t word;
              std::memcpy(&word, &weight, 4);
              word = empty ? 0 : (word & ~31u) | uint32_t(index);
              float exact;
              std::memcpy(&exact, &word, 4);
              std::memcpy(own + 4 * lane, &word, 4);
              value = exact;
            } else if (i16) {
              const double wanted = std::max(-1000.0, std::min(1000.0, 300.0 * normal(random)));
              const int word = empty ? 0 : int(wanted * 32 / kind.width) * kind.width + index;
              const int16_t stored = int16_t(word);
              std::memcpy(own + 4 * lane + 2 * entry, &stored, 2);
              value = double(word) * scale[(panel * gates + gate) * 16 + lane];
            } else {
              const int word = empty ? 0 : between(random, -127, 127);
              (shared ? slot : own + 64)[4 * lane + entry] = uint8_t(index);
              own[4 * lane + entry] = uint8_t(word);
              value = double(word) * scale[(panel * gates + gate) * 16 + lane];
            }
            if (unit < units) dense[(size_t(gate) * units + unit) * columns + bank[s] * kind.width + index] += value;
          }
        }
      }
    }
  }
  Packed packed;
  packed.blob.resize(64);
  append(packed.blob, start);
  append(packed.blob, bank);
  append(packed.blob, scale);
  append(packed.blob, data);
  const uint16_t words[] = {1, uint16_t(kind.format), uint16_t(kind.width), uint16_t(gates)};
  const uint32_t sizes[] = {uint32_t(units), uint32_t(columns), uint32_t(bank.size())};
  const uint16_t planes[] = {uint16_t(kind.planes), 0};
  const uint64_t bytes_in_all = packed.blob.size();
  std::memcpy(&packed.blob[0], "LSTMOPTW", 8);
  std::memcpy(&packed.blob[8], words, 8);
  std::memcpy(&packed.blob[16], sizes, 12);
  std::memcpy(&packed.blob[28], planes, 4);
  std::memcpy(&packed.blob[32], &bytes_in_all, 8);
  packed.dense = dense;
  return packed;
}

}  // namespace testing
