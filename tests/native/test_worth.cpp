// Which prefetches are worth a read, and whether prefetching is kept where it is faster.
#include "check.hpp"
#include "worth.hpp"

#include <algorithm>
#include <cmath>
#include <random>

using namespace haversack;

namespace {

constexpr int WARM_PASSES = 32, TRIAL_PASSES = 32, KEEP_PASSES = 192, QUIET_PASSES = 16;

// Seconds on a machine that is noisy by 10 %; a pass takes `with_s` while prefetching is on, else 1.
double run(Trial &trial, int passes, double with_s) {
    std::minstd_rand random(1);
    double total_s = 0;
    for (int i = 0; i < passes; i++) {
        const double noise = 0.95 + 0.1 * (random() % 1000) / 1000;
        const double pass_s = (trial.on() ? with_s : 1) * noise;
        total_s += pass_s;
        trial.note_pass({pass_s, 20});
    }
    return total_s;
}

}  // namespace

TEST(it_is_on_at_first_and_then_tried_both_ways) {
    Trial trial;
    for (int i = 0; i < WARM_PASSES; i++) {
        CHECK(trial.on());
        trial.note_pass({1, 20});
    }
    const bool turns[] = {true, false, false, true};
    for (int i = 0; i < TRIAL_PASSES; i++) {
        CHECK(trial.on() == turns[i % 4]);
        trial.note_pass({1, 20});
    }
}

TEST(the_faster_way_is_kept) {
    for (double with_s : {0.85, 0.95, 1.08, 1.2}) {
        Trial trial;
        run(trial, WARM_PASSES + TRIAL_PASSES, with_s);
        for (int i = 0; i < KEEP_PASSES - 1; i++) {
            CHECK(trial.on() == (with_s < 1));
            trial.note_pass({1, 20});
        }
    }
}

TEST(trying_costs_little) {
    for (double with_s : {0.8, 0.95, 1.05, 1.2}) {
        Trial trial;
        const int passes = WARM_PASSES + 10 * (TRIAL_PASSES + KEEP_PASSES);
        CHECK(run(trial, passes, with_s) < 1.025 * passes * std::min(with_s, 1.0));
    }
}

TEST(a_change_is_noticed_in_the_next_trial) {
    Trial trial;
    run(trial, WARM_PASSES + TRIAL_PASSES, 1.2);
    CHECK(!trial.on());
    run(trial, KEEP_PASSES + TRIAL_PASSES, 0.8);
    CHECK(trial.on());
}

TEST(passes_that_need_less_and_less_do_not_mislead_it) {
    for (double with_s : {0.9, 1.1}) {
        Trial trial;
        run(trial, WARM_PASSES, 1);
        for (int i = 0; i < TRIAL_PASSES; i++) {
            const double needed = std::round(300 * std::pow(0.9, i));
            const double pass_s = 1 + needed / 20 + needed * needed / 3600;
            trial.note_pass({pass_s * (trial.on() ? with_s : 1), (int64_t)needed});
        }
        CHECK(trial.on() == (with_s < 1));
    }
}

TEST(a_single_slow_pass_decides_nothing) {
    Trial trial;
    run(trial, WARM_PASSES, 0.8);
    trial.note_pass({50, 20});
    run(trial, TRIAL_PASSES - 1, 0.8);
    CHECK(trial.on());
}

// Where almost all experts lie in slots, noise hides what predicting costs.
TEST(it_is_off_where_predicting_takes_longer_than_there_is_to_wait) {
    for (double waited_s : {0.001, 0.1}) {
        Trial trial;
        for (int i = 0; i < WARM_PASSES + TRIAL_PASSES; i++) {
            if (trial.on()) trial.note_pass({1, 1, 0, 0.004});
            else trial.note_pass({1, 1, waited_s, 0});
        }
        CHECK(trial.on() == (waited_s > 0.004));
    }
}

// Passes with it happened to need more experts than passes without it.
TEST(what_passes_need_is_told_from_what_prefetching_gives) {
    for (double saved : {0.0, 0.03, 0.1}) {
        std::minstd_rand random(2);
        const auto passes = [&](int least, double share) {
            Trial::Passes made;
            for (int i = 0; i < 16; i++) {
                const int needed = least + random() % 21;
                const double noise = 0.98 + 0.04 * (random() % 1000) / 1000;
                made.push_back({(1 + needed / 20.0) * share * noise, needed});
            }
            return made;
        };
        const double found = Trial::gain(passes(15, 1 - saved), passes(5, 1));
        CHECK(std::abs(found - saved) < 0.04);
    }
}

TEST(a_rank_is_worth_it_where_it_is_right_often_enough) {
    for (double chance : {0.05, 0.3, 0.7, 0.95}) {
        Chances chances(4, 1);
        std::minstd_rand random(3);
        for (int rank = 0; rank < 4; rank++) CHECK(chances.is_worth_it(2, rank));
        for (int i = 0; i < 1000; i++) chances.note(2, 3, random() % 1000 < 1000 * chance);
        CHECK(chances.is_worth_it(2, 3) == (chance > 0.5));
        for (int rank = 0; rank < 3; rank++) CHECK(chances.is_worth_it(2, rank));
        CHECK(chances.is_worth_it(1, 3));
    }
}

TEST(a_rank_that_becomes_right_is_worth_it_again) {
    Chances chances(1, 1);
    for (int i = 0; i < 500; i++) chances.note(1, 0, false);
    CHECK(!chances.is_worth_it(1, 0));
    for (int i = 0; i < 100; i++) chances.note(1, 0, true);
    CHECK(chances.is_worth_it(1, 0));
}

TEST(a_layer_that_misses_nothing_for_long_is_not_predicted_until_it_misses) {
    Chances chances(1, 2);
    for (int i = 0; i < QUIET_PASSES; i++) {
        CHECK(chances.may_miss(0));
        chances.note_pass(0, false);
    }
    CHECK(!chances.may_miss(0));
    CHECK(chances.may_miss(1));
    chances.note_pass(0, true);
    CHECK(chances.may_miss(0));
}
