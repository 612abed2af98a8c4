// Reads that the system makes by itself: a request reaches the drive at once. Threads that read must
// be woken first, on cores that compute: on Linux they began 0.4 ms later and took three times the
// processor time. Each system has its own ring: Linux's io_uring, Windows' completion port.
#pragma once

#include <cstdint>
#include <memory>

#include "readers.hpp"

namespace haversack {

class Ring {
  public:
    // Returns null if the system has none or forbids it, as in many containers.
    static std::unique_ptr<Ring> open();
    virtual ~Ring() = default;

    virtual bool full() const = 0;
    // Queue a read of the missing bytes from `start` of the room on.
    virtual void push(Read *read, int descriptor, int64_t start) = 0;
    // Hand all queued reads to the system. Returns whether it took all. Others stay queued for the
    // next flush. If the system refuses them for good, `pop` returns them as failed.
    virtual bool flush() = 0;
    // Sleep until a read is done, `wake` is called, or `most_s` have passed.
    virtual void sleep(double most_s) = 0;
    virtual void wake() = 0;
    // Returns a read that is done and the number of bytes that came, or -errno; null if none is.
    virtual Read *pop(int64_t *result) = 0;
};

}  // namespace haversack
