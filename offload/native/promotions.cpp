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
    if (device_.num_empty() == 0) {
        const int32_t leaving = least_used();
        if (leaving == NOWHERE || rule.rate(leaving) >= MOST_SHARE * rule.rate(key)) return std::nullopt;
        device_.drop(device_.slot_of(leaving));
    }
    const int32_t host_slot = pool_.high.slot_of(key);
    pool_.high.pin(host_slot);
    const int32_t row = key / device_.num_experts, expert = key % device_.num_experts;
    return Promotion{key, host_slot, device_.claim(row, {expert})[0]};
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
    if (came) device_.fill(promotion.device_slot);
    else device_.drop(promotion.device_slot);
    device_.unpin(promotion.device_slot);
    pool_.high.unpin(promotion.host_slot);
    if (came && is_exclusive_ && !pool_.high.is_pinned(promotion.host_slot))
        pool_.high.drop(promotion.host_slot);
}

}  // namespace haversack
