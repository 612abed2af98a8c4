#include "worth.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr double LEAST_CHANCE = 0.5;  // what a right prefetch saves is about what a wrong one costs
constexpr double MEMORY = 64;         // a chance is an average over about so many predictions
constexpr int64_t QUIET_PASSES = 16;

double median(std::vector<double> values) {
    if (values.empty()) return 0;
    const size_t middle = values.size() / 2;
    std::nth_element(values.begin(), values.begin() + middle, values.end());
    const double upper = values[middle];
    if (values.size() % 2) return upper;
    return (upper + *std::max_element(values.begin(), values.begin() + middle)) / 2;
}

double mean_need(const Trial::Passes &passes) {
    double sum = 0;
    for (const Trial::Pass &pass : passes) sum += pass.needed;
    return sum / std::max<size_t>(1, passes.size());
}

// Seconds that a needed expert costs in either way, by least squares; never below 0.
double slope(const Trial::Passes &with_it, const Trial::Passes &without, double most_s) {
    double products = 0, squares = 0;
    for (const auto *passes : {&with_it, &without}) {
        const double mean = mean_need(*passes);
        for (const Trial::Pass &pass : *passes) {
            const double more = pass.needed - mean;
            products += more * std::min(pass.pass_s, most_s);  // a stalled pass says nothing
            squares += more * more;
        }
    }
    return squares > 0 ? std::max(0.0, products / squares) : 0;
}

}  // namespace

Chances::Chances(int num_ranks, int num_layers)
    : num_ranks_(num_ranks), chances_(PREFETCH_DEPTH * num_ranks, 1.0), quiet_(num_layers, 0) {}

bool Chances::is_worth_it(int depth, int rank) const {
    return chances_[(depth - 1) * num_ranks_ + rank] >= LEAST_CHANCE;
}

void Chances::note(int depth, int rank, bool right) {
    double &chance = chances_[(depth - 1) * num_ranks_ + rank];
    chance += (right - chance) / MEMORY;
}

bool Chances::may_miss(int layer) const { return quiet_[layer] < QUIET_PASSES; }

void Chances::note_pass(int layer, bool missed) { quiet_[layer] = missed ? 0 : quiet_[layer] + 1; }

void Trial::note_pass(const Pass &pass) {
    if (is_trial_) (on_ ? with_it_ : without_).push_back(pass);
    if (--passes_left_ == 0) {
        if (is_trial_) {
            on_ = can_pay(with_it_, without_) && gain(with_it_, without_) >= -MOST_LOSS;
            with_it_.clear();
            without_.clear();
        }
        is_trial_ = !is_trial_;
        passes_left_ = is_trial_ ? TRIAL_PASSES : KEEP_PASSES;
    }
    // Turns are short: while slots fill, passes need less and less, and long turns would find gains
    // and losses that are none.
    if (is_trial_) on_ = passes_left_ % 4 < 2;
}

// These times are of few parts of a pass, so less noise hides them than the passes' own.
bool Trial::can_pay(const Passes &with_it, const Passes &without) {
    double waited_s = 0, predicting_s = 0;
    for (const Pass &pass : without) waited_s += pass.waited_s / without.size();
    for (const Pass &pass : with_it) predicting_s += pass.predicting_s / with_it.size();
    return waited_s >= predicting_s;
}

double Trial::gain(const Passes &with_it, const Passes &without) {
    std::vector<double> all;
    for (const auto *passes : {&with_it, &without})
        for (const Pass &pass : *passes) all.push_back(pass.pass_s);
    const double cost_s = slope(with_it, without, 2 * median(all));
    const auto at_equal_need = [&](const Passes &passes) {
        std::vector<double> rest;
        for (const Pass &pass : passes) rest.push_back(pass.pass_s - cost_s * pass.needed);
        return median(rest);
    };
    const double mean = (mean_need(with_it) * with_it.size() + mean_need(without) * without.size()) /
                        std::max<size_t>(1, all.size());
    return 1 - (at_equal_need(with_it) + cost_s * mean) / (at_equal_need(without) + cost_s * mean);
}

}  // namespace haversack
