#include "pool.hpp"

#include <algorithm>
#include <limits>

namespace haversack {

namespace {

constexpr int MOST_CONVERSIONS = 8;  // by one balance; both values were measured, see cache/levels.py
constexpr double MARGIN = 0.9;

double cost_of_low(const PoolBytes &bytes) {
    return (double)bytes.slot[LOW] / (double)bytes.slot[HIGH];
}

}  // namespace

int32_t PoolBytes::first_slots(int32_t level) const {
    const int64_t num_high = (total - least_slots[LOW] * slot[LOW]) / slot[HIGH];
    return level == HIGH ? num_high : (total - num_high * slot[HIGH]) / slot[LOW];
}

Pool::Pool(std::shared_ptr<ExpectedUse> rule, int32_t num_slots, int32_t num_low, int32_t num_spare,
           const PoolBytes &bytes)
    : high(rule, HIGH, num_slots, num_spare), low(rule, LOW, num_low, num_spare), bytes_(bytes) {}

Pool::Pool(int32_t num_rows, int32_t num_experts, int32_t num_slots, int32_t num_spare)
    : Pool(std::make_shared<ExpectedUse>(num_rows, num_experts, 0), num_slots, 0, num_spare, {}) {}

Pool::Pool(int32_t num_rows, int32_t num_experts, const PoolBytes &bytes, int32_t num_spare)
    : Pool(std::make_shared<ExpectedUse>(num_rows, num_experts, cost_of_low(bytes)),
           bytes.first_slots(HIGH), bytes.first_slots(LOW), num_spare, bytes) {}

Copy Pool::find(int32_t row, int32_t expert, int32_t wanted) const {
    const int32_t slot = high.find(row, expert);
    if (wanted == HIGH || (slot != NOWHERE && high.is_ready(slot))) return {HIGH, slot};
    const int32_t low_slot = low.find(row, expert);
    const bool low_is_ready = low_slot != NOWHERE && low.is_ready(low_slot);
    return low_is_ready || slot == NOWHERE ? Copy{LOW, low_slot} : Copy{HIGH, slot};
}

bool Pool::is_above(int32_t row, int32_t expert) const {
    return std::any_of(above.begin(), above.end(), [&](const Slots *slots) {
        return slots->state_of(row, expert) == READY;
    });
}

bool Pool::is_twice_above() const {
    for (int32_t key = 0; key < high.num_rows * high.num_experts; key++)
        if (std::count_if(above.begin(), above.end(),
                          [&](const Slots *slots) { return slots->slot_of(key) != NOWHERE; }) > 1)
            return true;
    return false;
}

std::vector<int32_t> Pool::doubles() const {
    std::vector<int32_t> found;
    for (const Slots *slots : exclusive)
        for (int32_t there = 0; there < slots->num_slots(); there++) {
            const int32_t here = slots->is_ready(there) ? high.slot_of(slots->owner(there)) : NOWHERE;
            if (here != NOWHERE && high.is_ready(here) && !high.is_pinned(here)) found.push_back(here);
        }
    return found;
}

// Nothing leaves for those read HIGH, and a HIGH copy serves later wishes that would make a LOW one
// useless.
std::vector<int32_t> Pool::read_levels(const std::vector<int32_t> &wanted) {
    std::vector<int32_t> found = wanted;
    int64_t num_free = 0;
    if (is_filling_)
        num_free = high.num_empty() - high.num_spare - std::count(wanted.begin(), wanted.end(), HIGH);
    is_filling_ = num_free > 0;
    for (int32_t &level : found)
        if (level == LOW && num_free-- > 0) level = HIGH;
    return found;
}

void Pool::fill(int32_t level, int32_t slot) {
    this->level(level).fill(slot);
    if (level == LOW) return;
    const int32_t low_slot = low.slot_of(high.owner(slot));
    if (low_slot != NOWHERE && low.is_ready(low_slot)) low.drop(low_slot);
}

void Pool::recover() {
    high.recover();
    low.recover();
}

// --------------------------------------------------------------------- balance
int64_t Pool::free_bytes() const {
    return bytes_.total - high.num_slots() * bytes_.slot[HIGH] - low.num_slots() * bytes_.slot[LOW];
}

std::vector<Move> Pool::balance() {
    std::vector<Move> moves;
    const bool short_of_slots[] = {high.num_empty() <= high.num_spare, low.num_empty() <= low.num_spare};
    for (int i = 0; i < MOST_CONVERSIONS; i++) {
        const int32_t level = level_to_shrink(short_of_slots);
        if (level == NOWHERE) break;
        for (const auto &[source, target] : this->level(level).shrink(count_for_one(level)))
            moves.push_back({level, source, target});
        Slots &other = this->level(LOW - level);
        other.resize(other.num_slots() + free_bytes() / bytes_.slot[LOW - level]);
    }
    return moves;
}

// How many slots of `level` make room for at least one of the other.
int32_t Pool::count_for_one(int32_t level) const {
    const int64_t lacking = bytes_.slot[LOW - level] - free_bytes(), slot = bytes_.slot[level];
    return std::max<int64_t>(1, (lacking + slot - 1) / slot);
}

// The level whose slots are worth less than those of the other, which is short of slots; NOWHERE while
// HIGH slots are unused, or if its last slots are pinned.
int32_t Pool::level_to_shrink(const bool *short_of_slots) const {
    if (is_filling_ || !has_low()) return NOWHERE;
    for (int32_t level : {LOW, HIGH}) {
        const Slots &slots = level == HIGH ? high : low, &others = level == HIGH ? low : high;
        const int32_t count = count_for_one(level);
        if (!short_of_slots[LOW - level]) continue;
        if (slots.num_slots() - count < bytes_.least_slots[level]) continue;
        const double bound = MARGIN * others.least_worth(1);
        if (bound < std::numeric_limits<double>::infinity() && slots.least_worth(count) < bound &&
            slots.can_shrink(count))
            return level;
    }
    return NOWHERE;
}

int32_t Pool::next_upgrade() const {
    const int32_t best = low.best_for(HIGH);
    if (best == NOWHERE) return NOWHERE;
    const bool has_room = high.num_empty() > high.num_spare;
    return has_room || high.least_worth(1) < MARGIN * high.score(best, HIGH) ? best : NOWHERE;
}

void Pool::resize(int32_t num_slots) {
    if (!has_low()) return high.resize(num_slots);
    bytes_.total = num_slots * bytes_.slot[HIGH];
    high.resize(bytes_.first_slots(HIGH));
    low.resize(bytes_.first_slots(LOW));
}

}  // namespace haversack
