#include "batch_costs.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr double LEAST_SAVED = 0.02;       // of a layer's time: below it the host computes
constexpr int64_t ASKS_PER_LONE_HOST = 64;
constexpr int32_t FEW_NOTED = 4;           // the first graphs of a kind may take long

}  // namespace

void BatchCosts::note_host(int64_t work, bool is_alone, double taken_s) {
    if (work > 0) (is_alone ? alone_ : beside_).note(taken_s / work);
}

int32_t BatchCosts::most_worth(const BatchShare &share) {
    const int64_t turn = num_asked_++ % ASKS_PER_LONE_HOST;
    if (share.rows.empty() || turn == 0 || alone_.num_noted == 0) return 0;
    const bool is_known = pair_.num_noted >= FEW_NOTED && beside_.num_noted >= FEW_NOTED;
    if (is_known && turn != 1) return least_time(share);
    const bool is_quick = share.expert_bytes * copy_.mean_s < alone_.mean_s * share.host_work / 2;
    return is_quick ? 1 : 0;
}

// The experts that are copied follow each other over the link, and each is computed while the next one
// comes.
int32_t BatchCosts::least_time(const BatchShare &share) const {
    const double copy_s = share.expert_bytes * copy_.mean_s;
    double device_s = share.pairs_there * pair_.mean_s, host_s = share.host_work * beside_.mean_s;
    const double alone_s = std::max(device_s, share.host_work * alone_.mean_s);
    double least_s = (1 - LEAST_SAVED) * alone_s;
    int32_t best = 0;
    for (size_t i = 0; i < share.rows.size(); i++) {
        const double pairs_s = share.rows[i] * pair_.mean_s;
        device_s += std::max(copy_s, pairs_s);
        host_s -= work(share.rows[i]) * beside_.mean_s;
        const double both_s = std::max(device_s + std::min(copy_s, pairs_s), host_s);
        if (both_s >= least_s) continue;
        least_s = both_s;
        best = i + 1;
    }
    return best;
}

}  // namespace haversack
