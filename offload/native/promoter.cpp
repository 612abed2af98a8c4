#include "promoter.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr size_t LEAST_UPLOADS = 2, MOST_UPLOADS = 16;  // under way at once
constexpr int32_t RESTING_PASSES = 8;                   // after no expert was worth moving

}  // namespace

Promoter::Promoter(DeviceTier &tier, const std::vector<Layer> &layers, std::vector<Pool> &pools,
                   bool is_exclusive, int32_t reserve)
    : tier_(tier), layers_(layers), pools_(pools), reserve_(reserve), was_full_(pools.size()),
      most_(LEAST_UPLOADS), uploads_(tier) {
    static Slots none(1, 1, 0, 0);
    for (size_t number = 0; number < pools.size(); number++) {
        Slots *slots = tier.slots(number);
        promotions_.emplace_back(pools[number], slots ? *slots : none, is_exclusive);
    }
}

void Promoter::go_on() {
    take_in();
    if (tier_.has_failed) return withdraw();
    if (passes_to_rest_ > 0) return void(passes_to_rest_--);
    const bool has_room = uploads_.under_way().empty();
    most_ = has_room ? std::min(2 * most_, MOST_UPLOADS) : std::max(most_ / 2, LEAST_UPLOADS);
    if (!start_more() && has_room) passes_to_rest_ = RESTING_PASSES;
}

// Returns whether an expert was worth moving.
bool Promoter::start_more() {
    bool found = !freed_.empty();
    for (const auto &[pool, promotion] : freed_) submit(pool, promotion);
    freed_.clear();
    for (size_t number = 0; number < pools_.size(); number++) {
        const Slots &host = pools_[number].high;
        while (is_open(number) && uploads_.under_way().size() < most_ &&
               host.num_unpinned() > reserve_ + 1) {
            const auto promotion = promotions_[number].next();
            if (!promotion) break;
            submit(number, *promotion);
            found = true;
        }
    }
    return found;
}

void Promoter::submit(int32_t pool, const Promotion &promotion) {
    const int32_t key = promotion.leaving == NOWHERE ? promotion.key : promotion.leaving;
    uploads_.submit(layer_at(layers_, pool, key / pools_[pool].high.num_experts), promotion);
}

// Empty slots are filled once, to see what the device is good for.
bool Promoter::is_open(int32_t pool) {
    const Slots *slots = tier_.slots(pool);
    if (!slots) return false;
    was_full_[pool] = was_full_[pool] || slots->num_empty() == 0;
    return !was_full_[pool] || tier_.costs.pays();
}

int32_t Promoter::num_under_way(int32_t pool) const {
    const auto &all = uploads_.under_way();
    return std::count_if(all.begin(), all.end(),
                         [&](const auto &upload) { return upload->layer->pool == pool; });
}

void Promoter::take_in() {
    for (const auto &upload : uploads_.ended()) {
        const bool came = upload->state == UPLOADED;
        const int32_t pool = upload->layer->pool;
        if (came && upload->promotion.leaving != NOWHERE) {
            promotions_[pool].take_down(upload->promotion);
            freed_.emplace_back(pool, upload->promotion);
            continue;
        }
        promotions_[pool].finish(upload->promotion, came);
        tier_.state.promoted += came;
        tier_.state.moved_bytes += came ? upload->layer->expert_bytes(HIGH) : 0;
    }
}

void Promoter::withdraw() {
    uploads_.give_up();
    take_in();
    for (const auto &[pool, promotion] : freed_) promotions_[pool].finish(promotion, false);
    freed_.clear();
}

}  // namespace haversack
