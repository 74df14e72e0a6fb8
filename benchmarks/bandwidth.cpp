// Prints the bytes a nanosecond at which one core reads a buffer of each size again and again.
//
// g++ -O3 -march=native bandwidth.cpp -o bandwidth && ./bandwidth 32768 1000000
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

using Vector = long long __attribute__((vector_size(64)));
constexpr size_t kTogether = 8;  // independent sums, so that none waits for another
constexpr double kNanoseconds = 2e7;
constexpr int kRounds = 9;

double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void read(const Vector* from, size_t count, Vector* sums) {
  for (size_t i = 0; i < count; i += kTogether)
    for (size_t k = 0; k < kTogether; ++k) sums[k] ^= from[i + k];
  asm volatile("" : : "r"(sums) : "memory");  // or nothing would be read
}

int main(int count, char** values) {
  for (int i = 1; i < count; ++i) {
    const size_t block = sizeof(Vector) * kTogether;
    const size_t bytes = std::max<size_t>(std::strtoull(values[i], nullptr, 10) / block, 1) * block;
    auto* buffer = static_cast<Vector*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
    std::fill_n(reinterpret_cast<char*>(buffer), bytes, 1);
    std::vector<double> rates;
    for (int round = 0; round < kRounds; ++round) {
      Vector sums[kTogether] = {};
      const double start = now();
      double taken = 0;
      size_t passes = 0;
      for (; taken < kNanoseconds; taken = now() - start)
        for (int pass = 0; pass < 8; ++pass, ++passes) read(buffer, bytes / sizeof(Vector), sums);
      rates.push_back(double(bytes) * passes / taken);
    }
    std::sort(rates.begin(), rates.end());
    std::printf("%.1f\n", rates[kRounds / 2]);
    std::free(buffer);
  }
}
