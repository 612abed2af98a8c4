// Reads by Linux's io_uring: a request reaches the drive as it is made. Threads that read have to be
// woken before, on cores that compute; they began 0.4 ms late, and cost three times the processor.
#pragma once

#include <memory>
#include <sys/types.h>

#include "readers.hpp"

namespace haversack {

class Ring {
  public:
    // Null where the kernel has none, or does not allow it, as in many containers.
    static std::unique_ptr<Ring> open();
    ~Ring();
    Ring(const Ring &) = delete;

    bool full() const;
    // Queue a read of what is missing from `start` on of the room.
    void push(Read *read, int descriptor, int64_t start);
    // Hand all that is queued to the kernel: whether it took everything. What it did not take stays
    // queued for the next flush. Where the kernel will not take it at all, `pop` returns it failed.
    bool flush();
    // Sleep until something is done, or `wake` is called, or for `most_s`.
    void sleep(double most_s);
    void wake();
    // A read that is done, with what `pread` would have returned, or -errno; null: none is.
    Read *pop(ssize_t *result);

  private:
    struct Queues;
    explicit Ring(int descriptor);
    bool map(const void *params);
    void push_entry(uint8_t operation, int descriptor, void *address, uint32_t length, int64_t offset,
                    Read *read);

    Read *pop_refused(ssize_t *result);

    const int descriptor_;
    std::unique_ptr<Queues> queues_;
    unsigned num_queued_ = 0, num_under_way_ = 0;
    unsigned num_delays_ = 0;  // flushes in a row of which the kernel took nothing
    int refusal_ = 0;          // the errno with which the kernel refused what is queued
};

}  // namespace haversack
