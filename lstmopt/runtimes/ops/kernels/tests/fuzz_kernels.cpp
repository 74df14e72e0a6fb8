// Packed weights from anyone: whatever is accepted must run without reading or writing outside.
//
// With libFuzzer (clang -fsanitize=fuzzer), or by itself: fuzz_kernels [seconds] mutates random blobs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "lstmopt_kernels.h"
#include "random_blob.h"

namespace {

constexpr size_t kMostUnits = 512;  // what is larger takes too long, and reads nothing new

// Runs a layer of both cells and either reset, where it is accepted.
void try_layer(lstmopt_layer_config config) {
  char fault[200];
  lstmopt_layer* layer = nullptr;
  if (lstmopt_layer_create(&config, &layer, fault, sizeof fault)) return;
  const size_t hidden = lstmopt_layer_hidden(layer), directions = lstmopt_layer_directions(layer);
  if (hidden <= kMostUnits && lstmopt_layer_input(layer) <= kMostUnits) {
    const std::vector<float> x(2 * 5 * lstmopt_layer_input(layer), 0.5f);
    std::vector<float> y(2 * 5 * hidden * directions);
    const lstmopt_layer_call call = {2, 5, x.data(), nullptr, nullptr, nullptr, y.data(), nullptr, nullptr};
    lstmopt_layer_run(layer, &call, nullptr);
  }
  lstmopt_layer_destroy(layer);
}

// The last byte chooses the instruction set; the blob is W and R both, or a plain matrix, or R
// of a GRU whose reset comes before the product, which takes two matrices.
void try_blob(const uint8_t* data, size_t size) {
  if (!size) return;
  const size_t isa = data[size - 1] % lstmopt_isa_count();
  if (lstmopt_set_isa(lstmopt_isa_name(isa))) return;
  --size;
  // A copy of exactly that size: reading past it is found.
  const std::vector<uint8_t> blob(data, data + size);
  char fault[200];
  lstmopt_matmul* product = nullptr;
  if (!lstmopt_matmul_create(blob.data(), size, nullptr, 0, &product, fault, sizeof fault)) {
    const size_t units = lstmopt_matmul_units(product), columns = lstmopt_matmul_columns(product);
    if (units <= kMostUnits && columns <= kMostUnits) {
      const std::vector<float> x(5 * columns, 0.5f);
      std::vector<float> y(5 * units);
      lstmopt_matmul_run(product, 5, x.data(), y.data(), nullptr);
    }
    lstmopt_matmul_destroy(product);
  }
  lstmopt_layer_config config = {};
  config.w = config.r = blob.data();
  config.w_bytes = config.r_bytes = size;
  for (config.direction = LSTMOPT_FORWARD; config.direction <= LSTMOPT_BIDIRECTIONAL; config.direction += 2) {
    config.cell = LSTMOPT_LSTM, config.linear_before_reset = 0;
    try_layer(config);
    config.cell = LSTMOPT_GRU, config.linear_before_reset = 1;
    try_layer(config);
  }
  // {z, r} and {h} of R in one blob, behind a W that has nothing wrong.
  uint32_t units;
  if (size < 64) return;
  std::memcpy(&units, &blob[16], sizeof units);
  if (!units || units > kMostUnits) return;
  testing::Random random(1);
  const testing::Kind& of_w = testing::kKinds[size % std::size(testing::kKinds)];
  const std::vector<uint8_t> w = testing::random_blob(random, of_w, 3, int(units), 9, 1).blob;
  config.cell = LSTMOPT_GRU, config.linear_before_reset = 0, config.direction = LSTMOPT_FORWARD;
  config.w = w.data(), config.w_bytes = w.size();
  try_layer(config);
}

std::vector<uint8_t> fresh(testing::Random& random) {
  const testing::Kind& kind = testing::kKinds[testing::between(random, 0, 5)];
  const int size = testing::between(random, 1, 80), slots = testing::between(random, 0, 2);
  // 2: both matrices of R of a GRU whose reset comes before the product.
  const int gates = testing::between(random, kind.format == 4 ? 2 : 1, 4);
  std::vector<uint8_t> blob = testing::random_blob(random, kind, gates, size, size, slots).blob;
  if (gates == 2) {
    const testing::Kind& plain = kind.format == 4 ? testing::kKinds[3] : kind;
    const std::vector<uint8_t> rest = testing::random_blob(random, plain, 1, size, size, slots).blob;
    blob.insert(blob.end(), rest.begin(), rest.end());
  }
  blob.push_back(uint8_t(testing::between(random, 0, 255)));
  return blob;
}

void mutate(testing::Random& random, std::vector<uint8_t>& blob) {
  for (int i = testing::between(random, 0, 3); i >= 0 && !blob.empty(); --i) {
    // Headers and slots, at the beginning, decide most.
    const size_t most = testing::between(random, 0, 1) ? std::min<size_t>(blob.size(), 64) : blob.size();
    const size_t at = size_t(testing::between(random, 0, int(most) - 1));
    const uint8_t values[] = {0, 1, 127, 128, 255, uint8_t(testing::between(random, 0, 255))};
    switch (testing::between(random, 0, 3)) {
      case 0: blob[at] = values[testing::between(random, 0, 5)]; break;
      case 1: blob[at] ^= uint8_t(1 << testing::between(random, 0, 7)); break;
      case 2: blob[at] = uint8_t(blob[at] + testing::between(random, -2, 2)); break;
      default: testing::between(random, 0, 9) ? void(blob[at] = 255) : blob.resize(at);
    }
  }
}

}  // namespace

#if defined(LSTMOPT_LIBFUZZER)

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try_blob(data, size);
  return 0;
}

// Blobs of the right form are rare: one in eight inputs starts from a fresh one.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  testing::Random random(seed);
  if (!size || !testing::between(random, 0, 7)) {
    std::vector<uint8_t> blob = fresh(random);
    mutate(random, blob);
    size = std::min(most, blob.size());
    std::copy_n(blob.data(), size, data);
    return size;
  }
  if (testing::between(random, 0, 1)) return LLVMFuzzerMutate(data, size, most);
  std::vector<uint8_t> blob(data, data + size);
  mutate(random, blob);
  std::copy(blob.begin(), blob.end(), data);
  return blob.size();
}

#else

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
  testing::Random random(unsigned(count > 2 ? std::atoi(arguments[2]) : 1));
  const std::clock_t begin = std::clock();
  long tried = 0;
  while (double(std::clock() - begin) / CLOCKS_PER_SEC < seconds) {
    const std::vector<uint8_t> blob = fresh(random);
    try_blob(blob.data(), blob.size());
    for (int i = 0; i < 50; ++i, ++tried) {
      std::vector<uint8_t> other = blob;
      mutate(random, other);
      try_blob(other.data(), other.size());
    }
  }
  std::printf("%ld mutated blobs, nothing found\n", tried);
}

#endif
