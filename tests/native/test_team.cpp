// Regions of many sizes by teams of many sizes, in several threads and processes at once.
#include "check.hpp"
#include "faults.hpp"
#include "team.hpp"

#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace haversack;

namespace {

constexpr int MOST_RANKS = 6, NUM_STEPS = 20, NUM_REGIONS = 200;

struct Work {
    int written[MOST_RANKS] = {};
    int num_singles = 0;
};

// Each rank sees what all others wrote before a barrier.
void region(void *argument) {
    auto &work = *static_cast<Work *>(argument);
    Rank &rank = *current_rank;
    Team &team = *rank.team;
    if (team.single(rank)) ++work.num_singles;
    team.barrier(rank);
    for (int step = 0; step < NUM_STEPS; ++step) {
        work.written[rank.number] = step + rank.number;
        team.barrier(rank);
        for (int other = 0; other < team.num_ranks(); ++other)
            CHECK(work.written[other] == step + other);
        team.barrier(rank);
    }
}

void run(int num_ranks, int num_threads, double spin_s = 0) {
    Team::own().set(num_threads, spin_s);
    Work work;
    Team::own().run(region, &work, num_ranks);
    CHECK(work.num_singles == 1);
    CHECK(current_rank == nullptr);
}

void compute() {
    for (int i = 0; i < NUM_REGIONS; ++i) {
        const int num_ranks = 2 + i % (MOST_RANKS - 1);
        run(num_ranks, 1 + i % num_ranks, i % 3 ? 0 : 20e-6);
    }
    Team::own().rest();
    CHECK(!Team::working());
}

// The exit code of a forked process that runs `function`.
template <typename Function>
int in_a_child(Function function) {
    const pid_t child = fork();
    if (child == 0) {
        function();
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

}  // namespace

TEST(no_rank_goes_on_before_all_have_come) {
    std::thread other(compute);
    compute();
    other.join();
}

TEST(many_ranks_run_on_few_threads) {
    struct Sum {
        std::atomic<int> sum{0};
    } sum;
    const auto add = [](void *argument) {
        Rank &rank = *current_rank;
        static_cast<Sum *>(argument)->sum += rank.number;
        rank.team->barrier(rank);
        CHECK(static_cast<Sum *>(argument)->sum == 64 * 63 / 2);
    };
    for (int num_threads : {1, 2, 3}) {
        sum.sum = 0;
        Team::own().set(num_threads, 0);
        Team::own().run(add, &sum, 64);
    }
}

// The stack of a fiber keeps what lies on it while others run, and exceptions stay on it.
TEST(ranks_throw_and_catch_on_their_own_stacks) {
    Team::own().set(2, 0);
    Team::own().run(
        [](void *) {
            Rank &rank = *current_rank;
            volatile int mine[1000];
            for (int i = 0; i < 1000; ++i) mine[i] = i * rank.number;
            for (int round = 0; round < 3; ++round) {
                try {
                    rank.team->barrier(rank);
                    throw rank.number;
                } catch (int number) {
                    CHECK(number == rank.number);
                }
            }
            for (int i = 0; i < 1000; ++i) CHECK(mine[i] == i * rank.number);
        },
        nullptr, 7);
}

TEST(a_team_does_with_the_threads_that_the_system_grants) {
    std::thread([] {  // with a team of its own, which has no helpers yet
        faults::num_threads_left = 1;
        run(MOST_RANKS, 4);
        run(MOST_RANKS, 4);
        faults::num_threads_left = -1;
        run(MOST_RANKS, 4);
    })
        .join();
}

TEST(threads_that_end_take_their_teams_with_them) {
    for (int i = 0; i < 20; ++i) {
        std::vector<std::thread> threads;
        for (int t = 0; t < 3; ++t) threads.emplace_back([t] { run(4, 1 + t); });
        for (auto &thread : threads) thread.join();
    }
    run(4, 2);
    CHECK(Team::own().delayed_s() != 0);
}

TEST(a_forked_process_computes_with_a_team_of_its_own) {
    run(4, 2);
    CHECK(in_a_child([] {
              CHECK(!Team::working());
              run(4, 2);
          }) == 0);
    run(4, 2);
}

TEST(a_process_forked_in_a_region_belongs_to_none) {
    Team::own().set(1, 0);
    Team::own().run(
        [](void *) {
            CHECK(in_a_child([] {
                      CHECK(!current_rank && !Team::working());
                      run(3, 1);
                  }) == 0);
            current_rank->team->barrier(*current_rank);
        },
        nullptr, 2);
}
