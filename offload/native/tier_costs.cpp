#include "tier_costs.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr double NEWEST = 0.1;            // a value's part in its mean
constexpr double LEAST_WAIT_S = 10e-6;    // a shorter one does not tell when the device was done
constexpr double LEAST_GAIN = 0.02;       // below it the host computes: it has no other processor's bits
constexpr int64_t ASKS_PER_TRIAL = 512, ASKS_FOR_HOST = 8;

void note(double &mean_s, double taken_s) {
    mean_s = mean_s == 0 ? taken_s : mean_s + NEWEST * (taken_s - mean_s);
}

}  // namespace

void TierCosts::note_device(int32_t num_experts, double taken_s, double waited_s) {
    if (num_experts > MOST_EXPERTS) return;
    double &mean_s = device_s_[num_experts];
    if (waited_s >= LEAST_WAIT_S) note(mean_s, taken_s);
    else if (mean_s > taken_s) mean_s = 0;  // it is faster than it was
}

void TierCosts::note_host(int32_t num_experts, double taken_s) {
    if (num_experts > 0) note(host_s_, taken_s / num_experts);
}

// Of a number that was never measured: at least what fewer take.
double TierCosts::device_s(int32_t num_experts) const {
    while (num_experts > 0 && device_s_[num_experts] == 0) num_experts--;
    return device_s_[num_experts];
}

int32_t TierCosts::most_worth(int32_t num_used, int32_t num_there, int32_t num_must) {
    num_asked_++;
    if (num_used > MOST_EXPERTS || num_asked_ % ASKS_PER_TRIAL == 0) return num_there;
    if (host_s_ == 0) return num_asked_ % ASKS_FOR_HOST ? num_there : std::max(num_must, num_there - 1);
    const auto cost_s = [&](int32_t count) {
        return std::max(host_s_ * (num_used - count), device_s(count));
    };
    int32_t best = num_must;
    for (int32_t count = num_must + 1; count <= num_there; count++)
        if (cost_s(count) < (1 - LEAST_GAIN) * cost_s(best)) best = count;
    return best;
}

}  // namespace haversack
