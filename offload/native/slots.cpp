#include "slots.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace haversack {

Slots::Slots(std::shared_ptr<ExpectedUse> rule, int32_t level, int32_t num_slots, int32_t num_spare)
    : num_rows(rule->num_rows), num_experts(rule->num_experts), num_spare(num_spare),
      rule_(std::move(rule)), level_(level) {
    slot_of_.assign((size_t)num_rows * num_experts, NOWHERE);
    resize(num_slots);
}

// The `count` keys to give up, the first to leave first; of equal ones the lowest.
std::vector<int32_t> Slots::first_to_leave(std::vector<int32_t> keys, size_t count) const {
    std::vector<std::pair<double, int32_t>> scored;
    scored.reserve(keys.size());
    for (int32_t key : keys) scored.emplace_back(rule_->score(key, level_), key);
    count = std::min(count, keys.size());
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end());
    keys.resize(count);
    for (size_t i = 0; i < count; i++) keys[i] = scored[i].second;
    return keys;
}

// ----------------------------------------------------------------------- slots
std::vector<int32_t> Slots::claim(int32_t row, const std::vector<int32_t> &experts) {
    std::vector<int32_t> slots = borrow(experts.size());
    for (size_t i = 0; i < experts.size(); i++) adopt(slots[i], row * num_experts + experts[i]);
    return slots;
}

void Slots::adopt(int32_t slot, int32_t key) {
    owner_[slot] = key;
    slot_of_[key] = slot;
    state_[slot] = LOADING;
}

std::vector<int32_t> Slots::borrow(int32_t count) {
    const std::vector<int32_t> slots = vacate(count, num_spare);
    for (int32_t slot : slots) pin(slot);
    return slots;
}

// Find `count` empty slots, or else empty some, and `num_spare` more.
std::vector<int32_t> Slots::vacate(int32_t count, int32_t num_spare) {
    std::vector<int32_t> vacated;
    for (int32_t slot = 0; slot < num_slots() && (int32_t)vacated.size() < count; slot++)
        if (state_[slot] == EMPTY && pins_[slot] == 0) vacated.push_back(slot);
    if ((int32_t)vacated.size() < count) evict(count - vacated.size() + num_spare, vacated);
    vacated.resize(count);
    return vacated;
}

void Slots::evict(int32_t count, std::vector<int32_t> &vacated) {
    for (int32_t key : first_to_leave(held(), count)) {
        vacated.push_back(slot_of_[key]);
        drop(vacated.back());
    }
}

// The experts that may leave.
std::vector<int32_t> Slots::held() const {
    std::vector<int32_t> keys;
    for (int32_t slot = 0; slot < num_slots(); slot++)
        if (state_[slot] != EMPTY && pins_[slot] == 0) keys.push_back(owner_[slot]);
    return keys;
}

int32_t Slots::num_empty() const {
    int32_t count = 0;
    for (int32_t slot = 0; slot < num_slots(); slot++)
        count += state_[slot] == EMPTY && pins_[slot] == 0;
    return count;
}

int32_t Slots::num_pinned_ready() const {
    int32_t count = 0;
    for (int32_t slot = 0; slot < num_slots(); slot++) count += is_ready(slot) && is_pinned(slot);
    return count;
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

int32_t Slots::num_used() const {
    int32_t count = num_slots();
    while (count > 0 && state_[count - 1] == EMPTY && pins_[count - 1] == 0) count--;
    return count;
}

void Slots::resize(int32_t num_slots) {
    for (int32_t slot = num_slots; slot < this->num_slots(); slot++) drop(slot);
    owner_.resize(num_slots, NOWHERE);
    state_.resize(num_slots, EMPTY);
    pins_.resize(num_slots, 0);
}

bool Slots::can_shrink(int32_t count) const {
    return count <= num_unpinned() &&
           std::all_of(pins_.end() - count, pins_.end(), [](int32_t pins) { return pins == 0; });
}

std::vector<std::pair<int32_t, int32_t>> Slots::shrink(int32_t count) {
    const int32_t kept = num_slots() - count;
    std::vector<int32_t> vacated = vacate(count, 0);
    std::sort(vacated.begin(), vacated.end());
    std::vector<std::pair<int32_t, int32_t>> moves;
    for (int32_t source = kept; source < num_slots(); source++) {
        if (state_[source] == EMPTY) continue;
        const int32_t target = vacated[moves.size()];
        owner_[target] = owner_[source];
        state_[target] = state_[source];
        slot_of_[owner_[target]] = target;
        owner_[source] = NOWHERE;
        state_[source] = EMPTY;
        moves.emplace_back(source, target);
    }
    resize(kept);
    return moves;
}

// ----------------------------------------------------------------------- worth
// Empty slots do not count: those that an eviction left will be used at once.
double Slots::least_worth(int32_t count) const {
    auto keys = held();
    if (count <= 0 || count > (int32_t)keys.size()) return std::numeric_limits<double>::infinity();
    return rule_->score(first_to_leave(std::move(keys), count).back(), level_);
}

int32_t Slots::best_for(int32_t level) const {
    int32_t best = NOWHERE;
    double most = 0;
    for (size_t key = 0; key < slot_of_.size(); key++) {
        const int32_t slot = slot_of_[key];
        if (slot == NOWHERE || state_[slot] != READY || pins_[slot] != 0) continue;
        const double score = rule_->score(key, level);
        if (best == NOWHERE || score > most) best = key, most = score;
    }
    return best;
}

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
    const size_t num_empty = this->num_empty();
    if (experts.size() <= num_empty) return experts;
    std::vector<int32_t> keys = held();
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
