// A team computes a region: a function that `num_ranks` ranks run together, meeting at barriers, as
// OpenMP defines it. Fewer threads than ranks may do it: then a thread runs its ranks in turn, all
// but the first on fibers, from barrier to barrier. The ranks cannot tell, so the results are the same to the bit
// however many threads the machine has to spare.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <pthread.h>
#include <vector>

#include "fiber.hpp"

namespace haversack {

class Team;

// One of those that compute a region together; OpenMP calls it a thread.
struct Rank {
    Team *team;
    int number;
    Fiber *fiber = nullptr;          // that it runs on; null for a thread's first rank
    std::vector<Rank> *others = nullptr;  // of a thread's first rank: those that share the thread
    int num_singles = 0;             // "single" constructs that it has met in this region
};

// The rank that this thread runs now; null outside of regions.
extern thread_local Rank *current_rank;

// A number that threads can sleep on until it changes.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    // Add one, and wake those that sleep.
    void raise();
    // Return once the value is no longer `seen`: look for `spin_s` seconds, then sleep.
    void await_change(uint32_t seen, double spin_s);

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<int32_t> num_asleep_{0};
};

// The threads that compute what one thread asks for: itself and its helpers.
class Team {
  public:
    // The calling thread's team; made at its first use, and anew in a process that was forked.
    static Team &own();
    // The same if it is there and works, else null.
    static Team *working();
    ~Team();

    // From now on compute this thread's regions, with at most `num_threads` threads; one that waits
    // for another looks for `spin_s` seconds before it sleeps.
    void set(int num_threads, double spin_s);
    // Leave this thread's regions to OpenMP again.
    void rest() { works_ = false; }
    // Have `num_ranks` ranks run `function(argument)`; returns when all have.
    void run(void (*function)(void *), void *argument, int num_ranks);
    int num_ranks() const { return num_ranks_; }
    // Called by a rank: return when all ranks have called it.
    void barrier(Rank &rank);
    // Called by every rank: true for the first.
    bool single(Rank &rank);
    // Seconds that this thread and its helpers could have run but no processor was free, since they
    // began; negative where the system does not tell.
    double delayed_s();

  private:
    struct Helper {
        Team *team;
        int number;  // 1 and up; the thread whose team it is has 0
        pthread_t thread;
        Signal begin;  // raised when there is a region for it, or the end
        std::atomic<int32_t> delay_file{-1};
    };

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

    // The region. Threads meet where they have to wait for each other.
    void (*function_)(void *) = nullptr;
    void *argument_ = nullptr;
    int num_ranks_ = 1;
    std::atomic<int> num_threads_{1};
    std::atomic<int> num_singles_{0};
    alignas(64) std::atomic<int> num_met_{0};
    alignas(64) Signal met_;
};

}  // namespace haversack
