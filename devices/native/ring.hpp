// Reads by Linux's io_uring: a request reaches the drive at once. Threads that read must be woken
// first, on cores that compute: they began 0.4 ms later and took three times the processor time.
#pragma once

#include <memory>
#include <sys/types.h>

#include "readers.hpp"

namespace haversack {

class Ring {
  public:
    // Returns null if the kernel has no io_uring or forbids it, as in many containers.
    static std::unique_ptr<Ring> open();
    ~Ring();
    Ring(const Ring &) = delete;

    bool full() const;
    // Queue a read of the missing bytes from `start` of the room on.
    void push(Read *read, int descriptor, int64_t start);
    // Hand all queued reads to the kernel. Returns whether it took all. Others stay queued for the
    // next flush. If the kernel refuses them for good, `pop` returns them as failed.
    bool flush();
    // Sleep until a read is done, `wake` is called, or `most_s` have passed.
    void sleep(double most_s);
    void wake();
    // Returns a read that is done and the result of `pread` for it, or -errno; null if none is.
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
    unsigned num_delays_ = 0;  // consecutive flushes from which the kernel took nothing
    int refusal_ = 0;          // the errno with which the kernel refused the queued reads
};

}  // namespace haversack
