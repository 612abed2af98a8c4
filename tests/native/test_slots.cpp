// Which expert leaves when another needs its slot, beside the rule written down as plainly as can
// be.
#include "check.hpp"
#include "slots.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

using namespace haversack;

namespace {

constexpr int32_t NUM_ROWS = 5, NUM_EXPERTS = 12, NUM_USED = 3;

// The rule, from all that was ever used: the chance that an expert's layer wants it when it comes
// next, over the root of how many layers away that is.
struct History {
    struct Use {
        int32_t row, expert;
        double pass, layer;
    };
    std::vector<Use> uses;
    double pass = 1, layer = 0;
    int32_t now = 0;

    void use(int32_t row, const std::vector<int32_t> &experts) {
        if (row <= now && layer > 0) ++pass;
        now = row, ++layer;
        for (int32_t expert : experts) uses.push_back({row, expert, pass, layer});
    }
    double score(int32_t row, int32_t expert) const {
        double faded = 0, last_pass = 0, last_layer = 0;
        for (const Use &use : uses) {
            if (use.row != row || use.expert != expert) continue;
            faded += std::pow(0.5, (pass - use.pass) / 16);
            last_pass = use.pass, last_layer = use.layer;
        }
        const bool was_lately = last_pass == (row > now ? pass - 1 : pass);
        const double chance = faded / 16 + 0.3 * was_lately + 0.05 * last_layer / (layer + 1);
        const int32_t distance = row > now ? row - now : row - now + NUM_ROWS;
        return chance / std::sqrt(distance);
    }
};

std::vector<int32_t> some(std::minstd_rand &random, int32_t count) {
    std::vector<int32_t> all(NUM_EXPERTS);
    for (int32_t i = 0; i < NUM_EXPERTS; ++i) all[i] = i;
    std::shuffle(all.begin(), all.end(), random);
    // the first few are chosen more often
    std::stable_partition(all.begin(), all.end(), [&](int32_t i) { return i < 4 && random() % 2; });
    all.resize(count);
    return all;
}

std::map<int32_t, double> scores_of_residents(const Slots &slots, const History &history) {
    std::map<int32_t, double> scores;
    for (int32_t key : slots.residents())
        scores[key] = history.score(key / NUM_EXPERTS, key % NUM_EXPERTS);
    return scores;
}

}  // namespace

TEST(those_leave_that_the_rule_names) {
    for (int32_t num_spare : {0, 3}) {
        Slots slots(NUM_ROWS, NUM_EXPERTS, 20, num_spare);
        History history;
        std::minstd_rand random(num_spare + 1);
        for (int32_t step = 0; step < 400; ++step) {
            const int32_t row = step % NUM_ROWS;
            const auto chosen = some(random, NUM_USED);
            slots.use(row, chosen), history.use(row, chosen);
            std::vector<int32_t> absent, held;
            for (int32_t expert : chosen) {
                const int32_t slot = slots.find(row, expert);
                if (slot == NOWHERE) absent.push_back(expert);
                else slots.pin(slot), held.push_back(slot);
            }
            const auto before = scores_of_residents(slots, history);
            for (int32_t slot : slots.claim(row, absent)) slots.fill(slot), held.push_back(slot);
            double best_gone = -1, worst_kept = 1e9;
            for (auto [key, score] : before) {
                const int32_t slot = slots.find(key / NUM_EXPERTS, key % NUM_EXPERTS);
                const bool is_pinned = std::count(held.begin(), held.end(), slot) > 0;
                if (slot == NOWHERE) best_gone = std::max(best_gone, score);
                else if (!is_pinned) worst_kept = std::min(worst_kept, score);
            }
            CHECK(best_gone <= worst_kept + 1e-9);
            for (int32_t slot : held) slots.unpin(slot);
            CHECK(!slots.fault());
        }
        const auto residents = slots.residents();
        for (size_t i = 1; i < residents.size(); ++i)
            CHECK(history.score(residents[i - 1] / NUM_EXPERTS, residents[i - 1] % NUM_EXPERTS) +
                      1e-9 >=
                  history.score(residents[i] / NUM_EXPERTS, residents[i] % NUM_EXPERTS));
    }
}

TEST(pinned_experts_stay_and_borrowed_slots_come_back) {
    Slots slots(NUM_ROWS, NUM_EXPERTS, 6, 0);
    const auto claimed = slots.claim(2, {1, 2, 3, 4});
    for (int32_t slot : claimed) slots.fill(slot);
    slots.unpin(claimed[0]), slots.unpin(claimed[1]);
    CHECK(slots.num_unpinned() == 4);
    const auto borrowed = slots.borrow(4);
    CHECK(slots.num_unpinned() == 0 && !slots.fault());
    CHECK(slots.find(2, 1) == NOWHERE && slots.find(2, 2) == NOWHERE);
    CHECK(slots.find(2, 3) == claimed[2] && slots.is_ready(claimed[3]));
    for (int32_t slot : borrowed) slots.unpin(slot);
    CHECK(slots.num_unpinned() == 4 && !slots.fault());
}

TEST(after_a_failure_what_was_loading_is_gone_and_the_rest_is_there) {
    Slots slots(NUM_ROWS, NUM_EXPERTS, 6, 0);
    slots.fill(slots.claim(0, {5})[0]);
    slots.claim(1, {6, 7});
    slots.recover();
    CHECK(!slots.fault() && slots.num_unpinned() == 6);
    CHECK(slots.find(0, 5) != NOWHERE && slots.find(1, 6) == NOWHERE &&
          slots.find(1, 7) == NOWHERE);
}

TEST(a_pool_of_another_size_keeps_what_fits) {
    Slots slots(NUM_ROWS, NUM_EXPERTS, 8, 0);
    for (int32_t slot : slots.claim(3, {0, 1, 2, 3, 4, 5, 6, 7}))
        slots.fill(slot), slots.unpin(slot);
    slots.resize(3);
    CHECK(slots.num_slots() == 3 && slots.residents().size() == 3 && !slots.fault());
    slots.resize(10);
    CHECK(slots.residents().size() == 3 && slots.num_unpinned() == 10 && !slots.fault());
}
