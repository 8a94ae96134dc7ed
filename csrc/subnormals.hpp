// Numbers below the normal range, which processors take a hundred times as long over.
#pragma once

#include "pack.hpp"

namespace HF_NAMESPACE {
namespace {

// Lets this thread take them for zero, operands and results, as long as it lives, if they are not wanted.
class FlushSubnormals {
  public:
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;
#if defined(__SSE2__)
    explicit FlushSubnormals(bool flush = true) : saved_(_mm_getcsr()) {
        if (flush) _mm_setcsr(saved_ | 0x8040);
    }
    ~FlushSubnormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#else
    explicit FlushSubnormals(bool = true) {}
#endif
};

} // namespace
} // namespace HF_NAMESPACE
