#include "precision.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace haversack {

std::vector<int32_t> row_levels(const std::vector<float> &weights, Thresholds thresholds) {
    std::vector<int32_t> order(weights.size()), found(weights.size(), HIGH);
    std::iota(order.begin(), order.end(), 0);
    if (!std::all_of(weights.begin(), weights.end(), [](float weight) { return weight >= 0; }))
        return found;
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    float total = 0, above = 0;
    for (int32_t place : order) total += weights[place];
    if (!(total > 0) || !std::isfinite(total)) return found;
    for (int32_t place : order) {
        const float score = above / total;
        found[place] = (score > thresholds.low) + (score > thresholds.skip);
        above += weights[place];
    }
    return found;
}

std::vector<int32_t> batch_levels(const std::vector<int32_t> &votes, double low_share) {
    std::vector<int32_t> order(votes.size()), found(votes.size(), HIGH);
    std::iota(order.rbegin(), order.rend(), 0);  // of equal votes the higher expert goes LOW first
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return votes[a] < votes[b]; });
    const int64_t all = std::accumulate(votes.begin(), votes.end(), int64_t{0});
    int64_t left = (int64_t)(low_share * (double)all);
    for (int32_t expert : order)
        if ((left -= votes[expert]) >= 0) found[expert] = LOW;
    return found;
}

}  // namespace haversack
