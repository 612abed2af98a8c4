#include "slots.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace haversack {

namespace {

constexpr double HALF_LIFE = 16;  // passes; with LATELY and RECENCY from a grid on recorded models
constexpr double LATELY = 0.3, RECENCY = 0.05;
constexpr double LARGEST_UNIT = 1e100;

}  // namespace

Slots::Slots(int32_t num_rows, int32_t num_experts, int32_t num_slots, int32_t num_spare)
    : num_rows(num_rows), num_experts(num_experts), num_spare_(num_spare) {
    const size_t num_keys = (size_t)num_rows * num_experts;
    slot_of_.assign(num_keys, NOWHERE);
    for (auto *counts : {&uses_.uses, &uses_.last_pass, &uses_.last_use, &faded_})
        counts->assign(num_keys, 0);
    for (int32_t distance = 0; distance <= num_rows; distance++)
        roots_.push_back(std::sqrt((double)distance));
    resize(num_slots);
}

// ------------------------------------------------------------------------ uses
void Slots::use(int32_t row, const std::vector<int32_t> &experts) {
    if (row <= uses_.row && uses_.layers > 0) {
        uses_.passes += 1;
        unit_ *= std::pow(2, 1 / HALF_LIFE);
        if (unit_ > LARGEST_UNIT) {
            for (double &uses : faded_) uses /= unit_;
            unit_ = 1;
        }
    }
    uses_.row = row;
    uses_.layers += 1;
    for (int32_t expert : experts) {
        const int32_t key = row * num_experts + expert;
        uses_.uses[key] += 1;
        uses_.last_pass[key] = uses_.passes;
        uses_.last_use[key] = uses_.layers;
        faded_[key] += unit_;
    }
}

void Slots::remember(const Uses &uses) {
    uses_ = uses;
    unit_ = 1;
    const double all = 1 - std::pow(2, -1 / HALF_LIFE);
    for (size_t key = 0; key < faded_.size(); key++)
        faded_[key] = uses_.uses[key] / uses_.passes / all;
}

// The chance that the expert's layer wants it when it comes next, over the time until then.
double Slots::score(int32_t key) const {
    const int32_t row = key / num_experts, now = (int32_t)uses_.row;
    const int32_t distance = (row - now - 1 + num_rows) % num_rows + 1;
    const bool was_lately = uses_.last_pass[key] == uses_.passes - (row > now);
    double chance = faded_[key] / (HALF_LIFE * unit_);
    chance += LATELY * was_lately;
    chance += RECENCY * uses_.last_use[key] / (uses_.layers + 1);
    return chance / roots_[distance];
}

// The `count` keys to give up, the first to leave first; of equal ones the lowest.
std::vector<int32_t> Slots::first_to_leave(std::vector<int32_t> keys, size_t count) const {
    std::vector<std::pair<double, int32_t>> scored;
    scored.reserve(keys.size());
    for (int32_t key : keys) scored.emplace_back(score(key), key);
    count = std::min(count, keys.size());
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end());
    keys.resize(count);
    for (size_t i = 0; i < count; i++) keys[i] = scored[i].second;
    return keys;
}

// ----------------------------------------------------------------------- slots
std::vector<int32_t> Slots::claim(int32_t row, const std::vector<int32_t> &experts) {
    std::vector<int32_t> slots = vacate(experts.size());
    for (size_t i = 0; i < experts.size(); i++) {
        owner_[slots[i]] = row * num_experts + experts[i];
        slot_of_[owner_[slots[i]]] = slots[i];
        state_[slots[i]] = LOADING;
    }
    return slots;
}

std::vector<int32_t> Slots::borrow(int32_t count) { return vacate(count); }

// Pin `count` slots, empty ones first.
std::vector<int32_t> Slots::vacate(int32_t count) {
    std::vector<int32_t> vacated;
    for (int32_t slot = 0; slot < num_slots() && (int32_t)vacated.size() < count; slot++)
        if (state_[slot] == EMPTY && pins_[slot] == 0) vacated.push_back(slot);
    if ((int32_t)vacated.size() < count) evict(count - vacated.size(), vacated);
    vacated.resize(count);
    for (int32_t slot : vacated) pin(slot);
    return vacated;
}

void Slots::evict(int32_t count, std::vector<int32_t> &vacated) {
    std::vector<int32_t> held;
    for (int32_t slot = 0; slot < num_slots(); slot++)
        if (state_[slot] != EMPTY && pins_[slot] == 0) held.push_back(owner_[slot]);
    for (int32_t key : first_to_leave(std::move(held), count + num_spare_)) {
        vacated.push_back(slot_of_[key]);
        drop(vacated.back());
    }
}

void Slots::drop(int32_t slot) {
    if (owner_[slot] != NOWHERE) slot_of_[owner_[slot]] = NOWHERE;
    owner_[slot] = NOWHERE;
    state_[slot] = EMPTY;
}

void Slots::recover() {
    for (int32_t slot = 0; slot < num_slots(); slot++)
        if (state_[slot] == LOADING) drop(slot);
    std::fill(pins_.begin(), pins_.end(), 0);
    num_pinned_ = 0;
}

void Slots::resize(int32_t num_slots) {
    for (int32_t slot = num_slots; slot < this->num_slots(); slot++) drop(slot);
    owner_.resize(num_slots, NOWHERE);
    state_.resize(num_slots, EMPTY);
    pins_.resize(num_slots, 0);
}

// ----------------------------------------------------------------------- worth
std::vector<int32_t> Slots::residents() const {
    std::vector<int32_t> keys;
    for (int32_t slot = 0; slot < num_slots(); slot++)
        if (state_[slot] == READY) keys.push_back(owner_[slot]);
    const size_t count = keys.size();
    keys = first_to_leave(std::move(keys), count);
    std::reverse(keys.begin(), keys.end());
    return keys;
}

std::vector<int32_t> Slots::outlasting(int32_t row, const std::vector<int32_t> &experts) const {
    size_t num_empty = 0;
    std::vector<int32_t> keys;
    for (int32_t slot = 0; slot < num_slots(); slot++) {
        if (pins_[slot] != 0) continue;
        if (state_[slot] == EMPTY) num_empty++;
        else keys.push_back(owner_[slot]);
    }
    if (experts.size() <= num_empty) return experts;
    for (int32_t expert : experts) keys.push_back(row * num_experts + expert);
    const auto leaving = first_to_leave(std::move(keys), experts.size() - num_empty);
    std::vector<int32_t> staying;
    for (int32_t expert : experts)
        if (std::find(leaving.begin(), leaving.end(), row * num_experts + expert) == leaving.end())
            staying.push_back(expert);
    return staying;
}

const char *Slots::fault() const {
    int32_t num_owned = 0, num_pinned = 0;
    for (int32_t slot = 0; slot < num_slots(); slot++) {
        if (pins_[slot] < 0) return "a slot was unpinned more often than pinned";
        if ((owner_[slot] == NOWHERE) != (state_[slot] == EMPTY)) return "an empty slot has an owner";
        if (state_[slot] == LOADING && pins_[slot] == 0) return "a loading slot is not pinned";
        if (owner_[slot] != NOWHERE && slot_of_[owner_[slot]] != slot)
            return "a slot's owner lies elsewhere";
        num_owned += owner_[slot] != NOWHERE;
        num_pinned += pins_[slot] > 0;
    }
    if (num_pinned != num_pinned_) return "the number of pinned slots is wrong";
    const auto lost = std::count(slot_of_.begin(), slot_of_.end(), NOWHERE);
    if ((int64_t)slot_of_.size() - lost != num_owned) return "an expert has a slot that is not its own";
    return nullptr;
}

}  // namespace haversack
