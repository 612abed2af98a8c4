#include "expected_use.hpp"

#include <cmath>

namespace haversack {

namespace {

constexpr double HALF_LIFE = 16;  // passes; with LATELY and RECENCY from a grid on recorded models
constexpr double LATELY = 0.3, RECENCY = 0.05;
constexpr double LARGEST_UNIT = 1e100;

}  // namespace

ExpectedUse::ExpectedUse(int32_t num_rows, int32_t num_experts, double low_cost)
    : num_rows(num_rows), num_experts(num_experts), low_cost_(low_cost) {
    const size_t num_keys = (size_t)num_rows * num_experts;
    for (int level : {HIGH, LOW}) {
        Uses &uses = level == HIGH ? uses_ : low_uses_;
        for (auto *counts : {&uses.uses, &uses.last_pass, &uses.last_use, &faded_[level]})
            counts->assign(level == HIGH || low_cost > 0 ? num_keys : 0, 0);
    }
    for (int32_t distance = 0; distance <= num_rows; distance++)
        roots_.push_back(std::sqrt((double)distance));
}

void ExpectedUse::use(int32_t row, const std::vector<int32_t> &experts,
                      const std::vector<int32_t> &levels) {
    if (row <= uses_.row && uses_.layers > 0) {
        uses_.passes += 1;
        unit_ *= std::pow(2, 1 / HALF_LIFE);
        if (unit_ > LARGEST_UNIT) {
            for (auto &faded : faded_)
                for (double &uses : faded) uses /= unit_;
            unit_ = 1;
        }
    }
    uses_.row = row;
    uses_.layers += 1;
    for (size_t i = 0; i < experts.size(); i++) {
        const int32_t key = row * num_experts + experts[i];
        const bool is_low = !levels.empty() && levels[i] != HIGH;
        Uses &uses = is_low ? low_uses_ : uses_;
        uses.uses[key] += 1;
        uses.last_pass[key] = uses_.passes;
        uses.last_use[key] = uses_.layers;
        faded_[is_low][key] += unit_;
    }
}

// The chance that the expert's layer wants it when it comes next, over the time until then.
double ExpectedUse::score(int32_t key, int32_t level) const {
    const int32_t row = key / num_experts, now = (int32_t)uses_.row;
    const int32_t distance = (row - now - 1 + num_rows) % num_rows + 1;
    double worth = chance(key, level);
    if (level == HIGH && low_cost_ > 0) worth += (1 + low_cost_) / 2 * chance(key, LOW);
    return worth / roots_[distance];
}

double ExpectedUse::chance(int32_t key, int32_t level) const {
    const Uses &uses = level == HIGH ? uses_ : low_uses_;
    const bool was_lately =
        uses.last_pass[key] == uses_.passes - (key / num_experts > (int32_t)uses_.row);
    double chance = faded_[level][key] / (HALF_LIFE * unit_);
    chance += LATELY * was_lately;
    chance += RECENCY * uses.last_use[key] / (uses_.layers + 1);
    return chance;
}

double ExpectedUse::rate(int32_t key) const {
    double uses = uses_.uses[key], faded = faded_[HIGH][key];
    if (low_cost_ > 0) uses += low_uses_.uses[key], faded += faded_[LOW][key];
    return uses / uses_.passes + faded / (HALF_LIFE * unit_);
}

void ExpectedUse::remember(const Uses &uses) {
    uses_ = uses;
    unit_ = 1;
    const double all = 1 - std::pow(2, -1 / HALF_LIFE);
    for (size_t key = 0; key < uses.uses.size(); key++)
        faded_[HIGH][key] = uses.uses[key] / uses.passes / all;
    for (auto *counts : {&low_uses_.uses, &low_uses_.last_pass, &low_uses_.last_use, &faded_[LOW]})
        counts->assign(counts->size(), 0);
}

}  // namespace haversack
