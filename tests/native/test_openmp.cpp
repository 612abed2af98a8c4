// A library compiled with OpenMP computes its regions with our teams, and gives the same.
#include "check.hpp"
#include "openmp.hpp"
#include "team.hpp"

#include <omp.h>
#include <thread>

using namespace haversack;

extern "C" int sum_of_squares(int num_ranks, int count);
extern "C" int sum_by_loop(int num_ranks, int count);
extern "C" int num_of_nested(int num_ranks);

namespace {

constexpr int COUNT = 1000, SUM = (COUNT - 1) * COUNT * (2 * COUNT - 1) / 6;

void take_over() { CHECK(take_over_openmp(reinterpret_cast<void *>(&sum_of_squares)) == 5); }

}  // namespace

TEST(regions_of_a_library_are_taken_over) {
    take_over();
    for (int num_threads : {1, 2, 3}) {
        Team::own().set(num_threads, 0);
        for (int num_ranks = 1; num_ranks <= 7; ++num_ranks)
            CHECK(sum_of_squares(num_ranks, COUNT) == SUM);
    }
}

TEST(taking_over_twice_changes_nothing) {
    take_over();
    take_over();
    Team::own().set(2, 0);
    CHECK(sum_of_squares(4, COUNT) == SUM);
}

TEST(code_without_openmp_is_left_alone) {
    CHECK(take_over_openmp(reinterpret_cast<void *>(&std::abort)) == 0);
    CHECK(take_over_openmp(nullptr) == 0);
}

TEST(threads_compute_regions_at_once) {
    take_over();
    const auto compute = [] {
        Team::own().set(2, 0);
        for (int i = 0; i < 100; ++i) CHECK(sum_of_squares(2 + i % 3, COUNT) == SUM);
    };
    std::thread other(compute);
    compute();
    other.join();
}

#ifndef __SANITIZE_THREAD__  // GCC's OpenMP, which the thread sanitizer does not know, computes
                             // these
TEST(a_region_in_a_region_is_openmps) {
    take_over();
    omp_set_max_active_levels(2);
    Team::own().set(2, 0);
    CHECK(num_of_nested(3) == 3 * 2);
}

TEST(a_team_that_rests_leaves_regions_to_openmp) {
    take_over();
    Team::own().rest();
    CHECK(sum_of_squares(3, COUNT) == SUM);
    CHECK(sum_by_loop(3, COUNT) == SUM);  // outside of passes, as ggml's
    CHECK(num_of_nested(2) == 2 * 2);
    Team::own().set(2, 0);
    CHECK(sum_of_squares(3, COUNT) == SUM);
}
#endif
