#include "tier_costs.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr double NEWEST = 0.1;            // a value's part in its mean
constexpr double LEAST_WAIT_S = 10e-6;    // a shorter one does not tell when the device was done
constexpr double LEAST_GAIN = 0.02;       // below it the host computes: it has no other processor's bits
constexpr int64_t ASKS_PER_TRIAL = 512, ASKS_PER_EARLY_TRIAL = 8, ASKS_FOR_HOST = 8;
constexpr int32_t MANY_NOTED = 10;        // of one number: less than that may be chance

}  // namespace

// Of the first values the least counts: the very first one includes making a graph.
void MeasuredTime::note(double taken_s) {
    if (num_noted == MANY_NOTED) {
        mean_s += NEWEST * (taken_s - mean_s);
        return;
    }
    mean_s = num_noted++ == 0 ? taken_s : std::min(mean_s, taken_s);
}

void TierCosts::note_device(int32_t num_experts, double taken_s, double waited_s) {
    if (num_experts > MOST_EXPERTS) return;
    MeasuredTime &time = device_[num_experts];
    if (waited_s >= LEAST_WAIT_S) time.note(taken_s);
    else if (time.mean_s > taken_s) time = {};  // it is faster than it was
}

void TierCosts::note_host(int32_t num_experts, double taken_s) {
    if (num_experts > 0) host_.note(taken_s / num_experts);
}

// A number that was never measured takes at least as long as fewer experts.
double TierCosts::device_s(int32_t num_experts) const {
    while (num_experts > 0 && device_[num_experts].mean_s == 0) num_experts--;
    return device_[num_experts].mean_s;
}

bool TierCosts::is_trial(int32_t num_there) const {
    const bool is_known = num_there > MOST_EXPERTS || device_[num_there].num_noted >= MANY_NOTED;
    return num_asked_ % (is_known ? ASKS_PER_TRIAL : ASKS_PER_EARLY_TRIAL) == 0;
}

// Whether the device pays is judged without the drive: one that only beats reads is not worth more of the
// host's experts. One slow answer does not make the host read: the device's time would then be measured
// rarely, and many reads would follow.
int32_t TierCosts::most_worth(int32_t num_used, int32_t num_there, int32_t num_lone, double read_s) {
    num_asked_++;
    if (num_used > MOST_EXPERTS || is_trial(num_there)) return num_there;
    if (host_.mean_s == 0)
        return num_asked_ % ASKS_FOR_HOST ? num_there : std::max(num_lone, num_there - 1);
    const bool is_in_vain = soonest(num_used, num_there, 0, 0) == 0;
    num_in_vain_ = is_in_vain ? std::min(num_in_vain_ + 1, MOST_IN_VAIN) : 0;
    const int32_t best = soonest(num_used, num_there, num_lone, read_s);
    num_too_slow_ = best < num_lone ? std::min(num_too_slow_ + 1, MOST_IN_VAIN) : 0;
    return num_too_slow_ < MOST_IN_VAIN ? std::max(best, num_lone) : best;
}

// The number of experts with which the device and the host are done soonest.
int32_t TierCosts::soonest(int32_t num_used, int32_t num_there, int32_t num_lone, double read_s) const {
    const auto cost_s = [&](int32_t count) {
        const double reading_s = count < num_lone ? (num_lone - count) * read_s : 0;
        return std::max(host_.mean_s * (num_used - count) + reading_s, device_s(count));
    };
    int32_t best = 0;
    for (int32_t count = 1; count <= num_there; count++)
        if (cost_s(count) < (1 - LEAST_GAIN) * cost_s(best)) best = count;
    return best;
}

}  // namespace haversack
