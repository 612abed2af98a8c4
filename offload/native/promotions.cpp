#include "promotions.hpp"

#include <algorithm>

namespace haversack {

namespace {
// An expert leaves if it is used at most this share as often as the one that comes. Without such a margin
// experts that are used about equally would take turns, and each turn takes the link.
constexpr double MOST_SHARE = 0.7;
}  // namespace

std::optional<Promotion> Promotions::next() {
    const int32_t key = most_used();
    if (key == NOWHERE || device_.num_slots() == 0) return std::nullopt;
    const ExpectedUse &rule = *device_.rule();
    int32_t leaving = NOWHERE;
    if (device_.num_empty() == 0) {
        leaving = least_used();
        if (leaving == NOWHERE || rule.rate(leaving) >= MOST_SHARE * rule.rate(key)) return std::nullopt;
    }
    const int32_t host_slot = pool_.high.slot_of(key);
    pool_.high.pin(host_slot);
    if (leaving != NOWHERE) {
        const int32_t device_slot = device_.slot_of(leaving);
        if (is_exclusive_ && is_worth_a_slot(leaving)) {
            device_.pin(device_slot);
            return Promotion{key, host_slot, device_slot, leaving, pool_.high.borrow(1)[0]};
        }
        device_.drop(device_slot);
    }
    return Promotion{key, host_slot, claim(key)};
}

// The slot on the device that the expert gets.
int32_t Promotions::claim(int32_t key) {
    return device_.claim(key / device_.num_experts, {key % device_.num_experts})[0];
}

bool Promotions::is_worth_a_slot(int32_t key) const {
    const Slots &host = pool_.high;
    if (host.slot_of(key) != NOWHERE) return false;
    return !host.outlasting(key / host.num_experts, {key % host.num_experts}).empty();
}

void Promotions::take_down(Promotion &promotion) {
    Slots &host = pool_.high;
    if (host.slot_of(promotion.leaving) == NOWHERE) {
        host.adopt(promotion.left_slot, promotion.leaving);
        pool_.fill(HIGH, promotion.left_slot);
    }
    host.unpin(promotion.left_slot);
    device_.unpin(promotion.device_slot);
    device_.drop(promotion.device_slot);
    promotion = {promotion.key, promotion.host_slot, claim(promotion.key)};
}

// Of the experts with a READY copy on the host alone; of equal ones the lowest key.
int32_t Promotions::most_used() const {
    const Slots &host = pool_.high;
    int32_t best = NOWHERE;
    double most = 0;
    for (int32_t slot = 0; slot < host.num_slots(); slot++) {
        const int32_t key = host.owner(slot);
        if (key == NOWHERE || !host.is_ready(slot) || host.is_pinned(slot)) continue;
        const double rate = device_.rule()->rate(key);
        if (rate < most || (rate == most && best != NOWHERE && key > best)) continue;
        if (std::any_of(pool_.above.begin(), pool_.above.end(),
                        [&](const Slots *slots) { return slots->slot_of(key) != NOWHERE; }))
            continue;
        best = key, most = rate;
    }
    return best;
}

int32_t Promotions::least_used() const {
    int32_t found = NOWHERE;
    double least = 0;
    for (int32_t slot = 0; slot < device_.num_slots(); slot++) {
        const int32_t key = device_.owner(slot);
        if (key == NOWHERE || device_.is_pinned(slot)) continue;
        const double rate = device_.rule()->rate(key);
        if (found == NOWHERE || rate < least || (rate == least && key < found)) found = key, least = rate;
    }
    return found;
}

void Promotions::finish(const Promotion &promotion, bool came) {
    if (promotion.leaving != NOWHERE) pool_.high.unpin(promotion.left_slot);
    else if (came) device_.fill(promotion.device_slot);
    else device_.drop(promotion.device_slot);
    device_.unpin(promotion.device_slot);
    pool_.high.unpin(promotion.host_slot);
    if (came && is_exclusive_ && !pool_.high.is_pinned(promotion.host_slot))
        pool_.high.drop(promotion.host_slot);
}

}  // namespace haversack
