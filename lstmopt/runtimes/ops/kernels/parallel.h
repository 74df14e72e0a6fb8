// Spreads a range over a runtime's threads, or runs it here.
#pragma once

#include <algorithm>
#include <cstddef>

#include "denormals.h"
#include "lstmopt_kernels.h"

namespace lstmopt {

// Calls body(from, to) for parts of 0..count that begin at multiples of `grain`.
template <class Body>
void spread(const lstmopt_parallel* parallel, size_t count, size_t grain, const Body& body) {
  const size_t grains = (count + grain - 1) / grain;
  const size_t tasks = parallel && parallel->run ? std::min(parallel->workers, grains) : 1;
  if (tasks <= 1) {
    body(0, count);
    return;
  }
  struct Task {
    const Body& body;
    size_t count, grain, grains, tasks;
  } task{body, count, grain, grains, tasks};
  parallel->run(
      parallel->pool, tasks,
      [](void* argument, size_t index) {
        const Task& task = *static_cast<const Task*>(argument);
        const NoDenormals no_denormals;
        task.body(index * task.grains / task.tasks * task.grain,
                  std::min(task.count, (index + 1) * task.grains / task.tasks * task.grain));
      },
      &task);
}

}  // namespace lstmopt
