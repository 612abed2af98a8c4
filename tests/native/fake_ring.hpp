// The kernel's side of an io_uring, in this process: it gives the results that a test wants, when
// the test wants, also where the system has no io_uring.
#pragma once

#include <atomic>
#include <condition_variable>
#include <linux/io_uring.h>
#include <mutex>
#include <random>
#include <vector>

class FakeRing {
  public:
    // While it exists, it is what `io_uring_setup` opens.
    FakeRing();
    ~FakeRing();
    static FakeRing *current();

    // How to answer. Set these before the ring is opened, the atomic ones at any time.
    int setup_error = 0;
    unsigned features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    int num_maps_left = 2;
    std::atomic<int> refusal{0};  // errno of the next `num_refusals` submissions
    std::atomic<int> num_refusals{0};
    std::atomic<unsigned> most_taken{64};  // of one submission
    std::atomic<bool> holds{false};        // reads are not done before `serve`

    // Do up to `most` reads that are held, in any order: how many were done.
    int serve(int most);
    // Do all that are held, and hold none from now on.
    void release();
    // Return when so many reads are held, or none is to be.
    void await_held(size_t count);

    // The system calls.
    long setup(io_uring_params *params);
    long enter(unsigned num_queued, unsigned flags, const void *argument);
    void *map(size_t num_bytes, off_t what);
    int descriptor() const { return descriptor_; }

  private:
    struct Shared;
    void take(unsigned count);
    int serve_locked(int most);
    void finish(const io_uring_sqe &entry, int result);
    long sleep(const io_uring_getevents_arg &argument);

    int descriptor_ = -1;
    Shared *shared_ = nullptr;
    io_uring_sqe *entries_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<io_uring_sqe> held_;
    std::minstd_rand random_{7};
};
