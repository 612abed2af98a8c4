// Regions of many sizes by teams of many sizes, in two threads at once: each rank sees what all
// others wrote before a barrier. Compiled with sanitizers by ../test_team.py; FIBERS says whether
// ranks may share a thread, which the thread sanitizer cannot follow.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "team.hpp"

using namespace haversack;

constexpr int MOST_RANKS = 6, NUM_STEPS = 20, NUM_REGIONS = 300;

struct Work {
    int written[MOST_RANKS] = {};
    int num_singles = 0;
};

static void check(bool holds, const char *what) {
    if (holds) return;
    std::puts(what);
    std::abort();
}

static void region(void *argument) {
    auto &work = *static_cast<Work *>(argument);
    Rank &rank = *current_rank;
    Team &team = *rank.team;
    if (team.single(rank)) ++work.num_singles;
    team.barrier(rank);
    for (int step = 0; step < NUM_STEPS; ++step) {
        work.written[rank.number] = step + rank.number;
        team.barrier(rank);
        for (int other = 0; other < team.num_ranks(); ++other)
            check(work.written[other] == step + other, "a rank went on before all had written");
        team.barrier(rank);
    }
}

static void compute() {
    for (int i = 0; i < NUM_REGIONS; ++i) {
        const int num_ranks = 2 + i % (MOST_RANKS - 1);
        const int num_threads = FIBERS ? 1 + i % num_ranks : num_ranks;
        Team::own().set(num_threads, i % 3 ? 0 : 20e-6);
        Work work;
        Team::own().run(region, &work, num_ranks);
        check(work.num_singles == 1, "a single construct ran more than once, or not at all");
    }
    Team::own().rest();
    check(!Team::working(), "a team that rests works");
}

int main() {
    std::thread other(compute);
    compute();
    other.join();
    std::puts("done");
}
