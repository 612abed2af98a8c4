// Experts of a batch that lie on the host, and are copied to a device and computed there, because that is
// sooner.
#include "engine.hpp"

#include <algorithm>

namespace haversack {

// Of a batch, have devices compute experts that lie on the host too, those of the most rows, as many as
// measured times say.
void Engine::choose_streamed(const Call &call, Lease &lease) {
    if (!call.is_batch() || !is_form_known_) return;
    const Slots &host = pools_[call.layer.pool].high;
    for (size_t number = 0; number < tiers_.size(); number++) {
        DeviceTier &tier = *tiers_[number];
        if (tier.num_staging == 0 || tier.state.is_lost || !tier.slots(call.layer.pool)) continue;
        std::vector<int32_t> &ready = streamed_[number];
        for (size_t i = 0; i < lease.levels.size(); i++)
            if (lease.levels[i] == HIGH && host.is_ready(lease.slots[i]) &&
                call.choice.count(i) <= tier.most_pairs(form_))
                ready.push_back(i);
        std::stable_sort(ready.begin(), ready.end(), [&](int32_t one, int32_t other) {
            return call.choice.count(one) > call.choice.count(other);
        });
        if (!tier.state.streams_all)
            ready.resize(tier.batch_costs.most_worth(share_of(call, lease, number)));
        for (int32_t position : ready) lease.levels[position] = ELSEWHERE;
        lease.num_elsewhere += ready.size();
        tier.state.streamed += ready.size();
    }
}

BatchShare Engine::share_of(const Call &call, const Lease &lease, int32_t tier) const {
    BatchShare share{{}, host_work(call, lease), 0, form_.matrix_bytes(call.layer)};
    for (int32_t position : streamed_[tier]) share.rows.push_back(call.choice.count(position));
    for (int32_t position : there_[tier]) share.pairs_there += call.choice.count(position);
    return share;
}

int64_t Engine::host_work(const Call &call, const Lease &lease) const {
    int64_t sum = 0;
    for (size_t i = 0; i < lease.levels.size(); i++)
        if (lease.levels[i] < SKIP) sum += BatchCosts::work(call.choice.count(i));
    return sum;
}

// The layer is begun a second time, and needs the host's slots: nothing is copied from them any more.
bool Engine::take_back_streamed() {
    for (size_t tier = 0; tier < tiers_.size(); tier++) {
        if (streamed_[tier].empty()) continue;
        streamed_[tier].clear();
        abandon_tier(tier);
        if (tiers_[tier]->state.is_lost) return lose_tier(tier) == SUCCESS;
    }
    return true;
}

void Engine::note_batch_s(const Call &call, const Lease &lease, double taken_s) {
    if (!call.is_batch()) return;
    const bool is_alone = std::all_of(streamed_.begin(), streamed_.end(),
                                      [](const auto &streamed) { return streamed.empty(); });
    for (auto &tier : tiers_) tier->batch_costs.note_host(host_work(call, lease), is_alone, taken_s);
}

}  // namespace haversack
