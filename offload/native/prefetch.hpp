// Experts that are read into slots before a layer asks for them: those that a router predicts, and at a
// warm start those that lay in slots when the model was last closed.
#pragma once

#include <deque>
#include <list>
#include <vector>

#include "layer.hpp"
#include "low_copies.hpp"
#include "pool.hpp"
#include "worth.hpp"

namespace haversack {

// An expert on its way into a slot, which is LOADING and pinned. It is kept until its last read is
// done, because readers write into it.
struct Prefetch {
    int32_t layer, expert, level, slot, num_reads;
    bool is_cancelled = false;  // what had begun is still under way
    bool is_upgrade = false;    // to HIGH, of an expert with a LOW copy
    int32_t base_slot = NOWHERE;  // of the LOW copy, pinned, which its reads are the rest of
    Read reads[MAX_MATRICES];

    bool done() const;
    bool came() const;
    bool failed() const;
    std::vector<Read *> all();
};

using Prefetches = std::list<Prefetch>;

struct PrefetchCounts {
    int64_t started, right;  // experts prefetched; of them, those that their layer then chose
    int64_t possible;        // chosen by a layer with predictions, without a slot at that time
    int64_t needed;          // chosen, without a slot before a prefetch gave them one
    int64_t upgraded;        // LOW copies that became HIGH
};

class Prefetcher {
  public:
    // `reserve`: how many slots of a pool's level are left to a row.
    Prefetcher(const std::vector<Layer> &layers, std::vector<Pool> &pools, LowCopies &low,
               Readers &readers, int32_t reserve, int32_t num_ranks);

    // ------------------------------------------------------------ predictions
    // `layer` may choose `experts`, the likeliest first, wanted at `levels` (all HIGH where that is
    // empty), as was predicted `depth` layers before it: start to read those without a slot that are
    // worth it, as far as there are slots for them. Returns how many are worth it.
    int32_t predicted(int32_t layer, const std::vector<int32_t> &experts, int depth,
                      const std::vector<int32_t> &levels = {});
    // The same of a batch, which is almost sure to choose `experts`: all are worth a read, as far as
    // there are slots besides those that the layer needs if it chooses all its experts.
    void predicted_for_batch(int32_t layer, const std::vector<int32_t> &experts);
    // `layer` has chosen, wanted at `levels` (all HIGH where that is empty). Returns those of its
    // prefetches that serve and are still coming; their slots and pins are the caller's now. The wrong
    // ones are cancelled.
    Prefetches settle(int32_t layer, const std::vector<int32_t> &chosen,
                      const std::vector<int32_t> &levels = {});
    // `layer` chose, and `num_absent` of those chosen had no slot.
    void note_choice(int32_t layer, int64_t num_absent, int64_t needed_before);
    bool may_miss(int32_t layer) const { return chances_.may_miss(layer); }

    // -------------------------------------------------------------- warm start
    // Read these back, (layer, expert) and the most valuable first, while nothing else is asked for.
    void start_warm(std::deque<std::pair<int32_t, int32_t>> experts);
    // A row's reads have begun: ask for a few experts more.
    void go_on_warming();
    // The drive is idle: read the HIGH copy of an expert with a LOW one, of which a pool gains most.
    void upgrade();
    // What would still have come.
    std::vector<std::pair<int32_t, int32_t>> not_warm() const;

    // ----------------------------------------------------------------- the end
    // Return when no read is under way. Predictions are dropped, a warm start waits.
    void withdraw();
    void drop_predictions();
    // After a failure, when no read is under way any more.
    void forget();

    PrefetchCounts counts{};

  private:
    struct Prediction {  // of an expert that had no slot then
        int32_t expert, depth, rank;
    };
    Pool &pool_of(int32_t layer) { return pools_[layers_[layer].pool]; }
    void note_absent(int32_t layer);
    void clear_predictions();
    void start(int32_t layer, const std::vector<int32_t> &absent, int32_t level, int32_t most);
    Prefetch &read(Prefetches &list, int32_t layer, int32_t expert, Copy copy,
                   int32_t base_slot = NOWHERE);
    bool has_right_bytes(const Prefetch &prefetch);
    void join(const Prefetch &prefetch) const;
    bool serves(const Prefetch &prefetch, const std::vector<int32_t> &chosen,
                const std::vector<int32_t> &levels) const;
    void finish(Prefetch &prefetch);
    bool demand(Prefetch &prefetch);
    void cancel(Prefetch &prefetch);
    void judge_predictions(int32_t layer, const std::vector<int32_t> &chosen);
    void begin_warm(size_t count);
    void cut_warm(size_t count);
    void settle_warm(int32_t layer, const std::vector<int32_t> &chosen,
                     const std::vector<int32_t> &levels, Prefetches &coming);

    const std::vector<Layer> &layers_;
    std::vector<Pool> &pools_;
    LowCopies &low_;
    Readers &readers_;
    const int32_t reserve_;
    Chances chances_;
    std::vector<Prefetches> coming_;               // by layer
    std::vector<std::vector<Prediction>> predictions_;  // by layer
    std::vector<std::vector<bool>> absent_;        // by predicted layer: experts without a slot then
    std::deque<std::pair<int32_t, int32_t>> waiting_;  // of a warm start: layer, expert
    Prefetches warming_;                           // in the order they were asked for
};

}  // namespace haversack
