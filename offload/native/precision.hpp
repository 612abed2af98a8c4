// The rule of mixed precision: the level at which an expert is wanted that has no copy in a slot. Plain
// numbers; cache/precision.py describes the same rule in Python, and tests hold both against each other.
#pragma once

#include <cstdint>
#include <vector>

namespace haversack {

enum Level : int32_t { HIGH = 0, LOW = 1, SKIP = 2 };
constexpr int NUM_LEVELS = 2;  // of copies

// A score above `low` is wanted LOW, one above `skip` SKIP. At 1 neither ever happens.
struct Thresholds {
    float low = 1, skip = 1;
};

// The level of each of a row's experts, which have these router weights. A score is the share of the
// row's weight that ranks higher.
std::vector<int32_t> row_levels(const std::vector<float> &weights, Thresholds thresholds);

// The level of each expert in a batch that `votes` rows chose: those of the fewest, which have at most
// `low_share` of all votes, go LOW.
std::vector<int32_t> batch_levels(const std::vector<int32_t> &votes, double low_share);

}  // namespace haversack
