// No exception crosses the C interface. Only the small vectors of plans throw, for want of memory.
#pragma once

#include <exception>

#include "torchadder.h"

namespace torchadder {

// The status that `run` returns, or TA_OUT_OF_MEMORY where it throws.
template <class Run>
int guarded(Run run) {
  try {
    return run();
  } catch (const std::exception&) {
    return TA_OUT_OF_MEMORY;
  }
}

}  // namespace torchadder
