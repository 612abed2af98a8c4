// A team computes a region: a function that `num_ranks` ranks run together and that has barriers,
// as OpenMP defines it. With fewer threads than ranks, a thread runs its ranks in turn from barrier
// to barrier, all but the first on fibers. This does not change what a rank computes, so the
// results are the same to the bit for any number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "fiber.hpp"

namespace haversack {

class Team;

// One of the parts that compute a region together; OpenMP calls it a thread.
struct Rank {
    Team *team;
    int number;
    Fiber *fiber = nullptr;          // that the rank runs on; null for a thread's first rank
    std::vector<Rank> *others = nullptr;  // of a first rank: the ranks of its thread
    int num_singles = 0;             // "single" constructs that it has met in this region
};

// The rank that this thread runs now; null outside of regions.
extern thread_local Rank *current_rank;

// A number that threads can sleep on until it changes.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    // Add one, and wake the threads that sleep.
    void raise();
    // Return once the value is no longer `seen`: spin for `spin_s` seconds, then sleep.
    void await_change(uint32_t seen, double spin_s);

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<int32_t> num_asleep_{0};
};

// The threads that compute the regions of one thread: that thread and its helpers.
class Team {
  public:
    // Returns the calling thread's team; it is made at first use, and anew in a forked process.
    static Team &own();
    // Returns the same if it was made and works, else null.
    static Team *working();
    ~Team();

    // Compute this thread's regions from now on, with at most `num_threads` threads. A thread that
    // waits spins for `spin_s` seconds before it sleeps.
    void set(int num_threads, double spin_s);
    // Leave this thread's regions to OpenMP again.
    void rest() { works_ = false; }
    // Have `num_ranks` ranks run `function(argument)`; returns when all have returned.
    void run(void (*function)(void *), void *argument, int num_ranks);
    int num_ranks() const { return num_ranks_; }
    // Return when all ranks have called it. A rank calls this.
    void barrier(Rank &rank);
    // Returns true for the first rank that calls it. Every rank calls this.
    bool single(Rank &rank);
    // Returns the seconds in which this thread and its helpers were ready and no processor was
    // free, since they began; negative if the system does not tell.
    double delayed_s();

  private:
    struct Helper;

    void grow(int num_threads);
    static void *help(void *helper);
    void compute(int thread);
    std::vector<Rank> begin_others(int thread);
    void meet();

    std::vector<std::unique_ptr<Helper>> helpers_;
    std::vector<std::unique_ptr<Fiber>> fibers_;  // by rank
    int delay_file_ = -1;
    bool works_ = false;
    int max_threads_ = 1;
    std::atomic<double> spin_s_{0};
    std::atomic<bool> ends_{false};

    // The region, and the barrier of its threads.
    void (*function_)(void *) = nullptr;
    void *argument_ = nullptr;
    int num_ranks_ = 1;
    std::atomic<int> num_threads_{1};
    std::atomic<int> num_singles_{0};
    alignas(64) std::atomic<int> num_met_{0};
    alignas(64) Signal met_;
};

}  // namespace haversack
