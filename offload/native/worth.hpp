// Which prefetches are worth a read, and whether prefetching pays at all: numbers only.
#pragma once

#include <cstdint>
#include <vector>

namespace haversack {

constexpr int PREFETCH_DEPTH = 3;  // a choice is predicted at most so many layers ahead

// The chance that a predicted expert without a slot is chosen, by how many layers ahead that was
// predicted and by its rank among those predicted. All predictions count, also those that were not
// read, so no trials are needed. Until outcomes are known, every rank counts as right. Experts that
// stay in slots are those often used: of the others even a good router's lowest ranks are chosen
// rarely, and reading them costs more than it brings.
class Chances {
  public:
    Chances(int num_ranks, int num_layers);

    bool is_worth_it(int depth, int rank) const;
    void note(int depth, int rank, bool right);
    // Whether a layer is worth predicting: not while it has missed nothing for some passes.
    bool may_miss(int layer) const;
    void note_pass(int layer, bool missed);

  private:
    const int num_ranks_;
    std::vector<double> chances_;  // (PREFETCH_DEPTH, num_ranks)
    std::vector<int64_t> quiet_;   // passes without a miss, by layer
};

// Whether prefetching pays: what it gives depends on the drive, the budget, the text and on what else
// the machine does, and reads take memory bandwidth and processor time. So passes with it are compared
// with passes without it, in turn, and the faster way is kept for a while.
class Trial {
  public:
    struct Pass {
        double pass_s;
        int64_t needed;  // experts that had no slot before they were prefetched
        double waited_s = 0, predicting_s = 0;  // of `pass_s`
    };
    using Passes = std::vector<Pass>;

    bool on() const { return on_; }
    void note_pass(const Pass &pass);

    // Whether it can pay: it saves at most what passes without it wait, and predicting takes time.
    static bool can_pay(const Passes &with_it, const Passes &without);
    // By what share passes with it are shorter, at equal need: what a pass needs differs more from
    // the next one's than prefetching can save.
    static double gain(const Passes &with_it, const Passes &without);

  private:
    bool on_ = true, is_trial_ = false;
    int passes_left_ = WARM_PASSES;
    Passes with_it_, without_;

    static constexpr int WARM_PASSES = 32;   // at first slots fill, which costs more than reads
    static constexpr int TRIAL_PASSES = 32;  // half with it, half without
    static constexpr int KEEP_PASSES = 192;  // from one trial to the next
    static constexpr double MOST_LOSS = 0.02;  // predictions are right more often than not
};

}  // namespace haversack
