// Memory at multiples of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace lstmopt {

constexpr size_t kAlignment = 64;

constexpr size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> allocate(size_t count) {
  if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
  void* memory = std::aligned_alloc(kAlignment, aligned(count * sizeof(T) + 1));
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

}  // namespace lstmopt
