// Memory of one call: it grows to the largest call of its thread, and is used again by the next.
#pragma once

#include <memory>
#include <vector>

#include "buffer.h"

namespace lstmopt {

class Scratch {
 public:
  // `bytes` is what all `take`s will add up to.
  explicit Scratch(size_t bytes) : block_(lend()) {
    if (block_->bytes < bytes) {
      block_->memory.reset();
      block_->bytes = 0;
      block_->memory = allocate<uint8_t>(bytes);
      block_->bytes = bytes;
    }
    at_ = block_->memory.get();
  }

  ~Scratch() { idle().push_back(std::move(block_)); }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* take(size_t count) {
    T* taken = reinterpret_cast<T*>(at_);
    at_ += aligned(count * sizeof(T));
    return taken;
  }

 private:
  struct Block {
    Buffer<uint8_t> memory;
    size_t bytes = 0;
  };
  using Blocks = std::vector<std::unique_ptr<Block>>;

  // A thread that waits in a pool may be given another call to run: so a thread may need several blocks.
  static Blocks& idle() {
    thread_local Blocks blocks;
    return blocks;
  }

  static std::unique_ptr<Block> lend() {
    Blocks& blocks = idle();
    blocks.reserve(8);
    if (blocks.empty()) return std::make_unique<Block>();
    std::unique_ptr<Block> block = std::move(blocks.back());
    blocks.pop_back();
    return block;
  }

  std::unique_ptr<Block> block_;
  uint8_t* at_;
};

}  // namespace lstmopt
