#include "promoter.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr size_t LEAST_UPLOADS = 2, MOST_UPLOADS = 16;  // under way at once
constexpr int32_t RESTING_PASSES = 8;                   // after no expert was worth moving

}  // namespace

Promoter::Promoter(DeviceTier &tier, const std::vector<Layer> &layers, std::vector<Pool> &pools,
                   bool is_exclusive, int32_t reserve)
    : tier_(tier), layers_(layers), pools_(pools), reserve_(reserve), most_(LEAST_UPLOADS),
      uploads_(tier) {
    static Slots none(1, 1, 0, 0);
    for (size_t number = 0; number < pools.size(); number++) {
        Slots *slots = tier.slots(number);
        promotions_.emplace_back(pools[number], slots ? *slots : none, is_exclusive);
    }
}

void Promoter::go_on() {
    take_in();
    if (tier_.has_failed) return;
    if (passes_to_rest_ > 0) return void(passes_to_rest_--);
    const bool has_room = uploads_.under_way().empty();
    most_ = has_room ? std::min(2 * most_, MOST_UPLOADS) : std::max(most_ / 2, LEAST_UPLOADS);
    if (!start_more() && has_room) passes_to_rest_ = RESTING_PASSES;
}

// Returns whether an expert was worth moving.
bool Promoter::start_more() {
    bool found = false;
    for (size_t number = 0; number < pools_.size(); number++)
        while (is_open(number) && uploads_.under_way().size() < most_ &&
               pools_[number].high.num_unpinned() > reserve_) {
            const auto promotion = promotions_[number].next();
            if (!promotion) break;
            uploads_.submit(layer_of(number, promotion->key), *promotion);
            found = true;
        }
    return found;
}

// Empty slots are filled once, to see what the device is good for.
bool Promoter::is_open(int32_t pool) const {
    const Slots *slots = tier_.slots(pool);
    return slots && (slots->num_empty() > 0 || tier_.costs.pays());
}

const Layer &Promoter::layer_of(int32_t pool, int32_t key) const {
    const int32_t row = key / pools_[pool].high.num_experts;
    return *std::find_if(layers_.begin(), layers_.end(), [&](const Layer &layer) {
        return layer.pool == pool && layer.row == row;
    });
}

int32_t Promoter::num_under_way(int32_t pool) const {
    const auto &all = uploads_.under_way();
    return std::count_if(all.begin(), all.end(),
                         [&](const auto &upload) { return upload->layer->pool == pool; });
}

void Promoter::take_in() {
    for (const auto &upload : uploads_.ended()) {
        const bool came = upload->state == UPLOADED;
        promotions_[upload->layer->pool].finish(upload->promotion, came);
        tier_.state.promoted += came;
        tier_.state.moved_bytes += came ? upload->layer->expert_bytes(HIGH) : 0;
    }
}

void Promoter::withdraw() {
    if (uploads_.under_way().empty()) return;
    uploads_.give_up();
    take_in();
}

}  // namespace haversack
