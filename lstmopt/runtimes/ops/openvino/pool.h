// OpenVINO's own threads for the tasks of one call. Where it was built without TBB there are none.
#pragma once

#include <algorithm>

#include "lstmopt_kernels.h"

#if defined(LSTMOPT_TBB)
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#endif

namespace lstmopt_ov {

// `threads`: into how many tasks a step may be divided; 1 or less: into none.
inline lstmopt_parallel parallel(int64_t threads) {
#if defined(LSTMOPT_TBB)
  if (threads > 1) {
    const auto run = [](void*, size_t count, void (*task)(void*, size_t), void* argument) {
      // Isolated: while it waits, this thread takes no other work of the stream, which could be an op of ours that
      // writes into the memory that the thread keeps for this one (`kept`).
      tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(size_t(0), count, [&](size_t i) { task(argument, i); }, tbb::static_partitioner());
      });
    };
    // An op runs in the arena of its stream, which has the threads of one inference.
    const int most = tbb::this_task_arena::max_concurrency();
    return {run, nullptr, size_t(std::clamp<int64_t>(threads, 1, std::max(most, 1)))};
  }
#endif
  (void)threads;
  return {};
}

}  // namespace lstmopt_ov
