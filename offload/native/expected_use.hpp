// The eviction rule: what a copy of an expert in a slot is worth. cache/policies.py (ExpectedUse)
// describes it in Python, and tests hold both against each other to the bit.
#pragma once

#include <cstdint>
#include <vector>

#include "precision.hpp"

namespace haversack {

// What the rule has learnt of each expert, by key: row * experts + expert.
struct Uses {
    std::vector<double> uses, last_pass, last_use;
    double passes = 1, row = 0, layers = 0;  // its clock, see Policy.clock in cache/policies.py
};

class ExpectedUse {
  public:
    // `low_cost`: a LOW copy's part of a HIGH one's bytes; 0: there is one level alone.
    ExpectedUse(int32_t num_rows, int32_t num_experts, double low_cost);

    const int32_t num_rows, num_experts;
    // The experts of `row` are used now and wanted at `levels`, or all HIGH where that is empty.
    void use(int32_t row, const std::vector<int32_t> &experts, const std::vector<int32_t> &levels);
    // What the expert's copy of `level` is worth.
    double score(int32_t key, int32_t level) const;
    // How often the expert is used in a pass, at whatever level: of all passes and of the latest ones.
    double rate(int32_t key) const;

    // The uses that wanted HIGH.
    const Uses &uses() const { return uses_; }
    // Go on from what another run learnt: what its latest passes used counts no more than the rest,
    // because another text begins. Uses that wanted LOW are forgotten.
    void remember(const Uses &uses);

  private:
    double chance(int32_t key, int32_t level) const;

    const double low_cost_;
    Uses uses_, low_uses_;  // the clock is that of `uses_`
    // Uses that fade, by level and key, in a unit that grows from pass to pass: no older use must be
    // touched.
    std::vector<double> faded_[NUM_LEVELS];
    double unit_ = 1;
    std::vector<double> roots_;  // of 0 to num_rows
};

}  // namespace haversack
