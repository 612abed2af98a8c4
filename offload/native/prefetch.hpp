// Experts that are read into slots before a layer asks for them: those that a router predicts, and at a
// warm start those that lay in slots when the model was last closed.
#pragma once

#include <deque>
#include <list>
#include <vector>

#include "layer.hpp"
#include "slots.hpp"
#include "worth.hpp"

namespace haversack {

// An expert on its way into a slot, which is LOADING and pinned. It is kept until its last read is
// done, because readers write into it.
struct Prefetch {
    int32_t layer, expert, slot, num_reads;
    bool is_cancelled = false;  // what had begun is still under way
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
};

class Prefetcher {
  public:
    // `reserve`: how many slots of a pool are left to a row.
    Prefetcher(const std::vector<Layer> &layers, std::vector<Slots> &pools, Readers &readers,
               int32_t reserve, int32_t num_ranks, int32_t num_layers);

    // ------------------------------------------------------------ predictions
    // `layer` may choose `experts`, the likeliest first, as was predicted `depth` layers before it:
    // start to read those without a slot that are worth it, as far as there are slots for them.
    // Returns how many are worth it.
    int32_t predicted(int32_t layer, const std::vector<int32_t> &experts, int depth);
    // The same of a batch, which is almost sure to choose `experts`: all are worth a read, as far as
    // there are slots besides those that the layer needs if it chooses all its experts.
    void predicted_for_batch(int32_t layer, const std::vector<int32_t> &experts);
    // `layer` has chosen. Returns its prefetches that are still coming; their slots and pins are the
    // caller's now. The wrong ones are cancelled.
    Prefetches settle(int32_t layer, const std::vector<int32_t> &chosen);
    // `layer` chose, and `num_absent` of those chosen had no slot.
    void note_choice(int32_t layer, int64_t num_absent, int64_t needed_before);
    bool may_miss(int32_t layer) const { return chances_.may_miss(layer); }

    // -------------------------------------------------------------- warm start
    // Read these back, (layer, expert) and the most valuable first, while nothing else is asked for.
    void start_warm(std::deque<std::pair<int32_t, int32_t>> experts);
    // A row's reads have begun: ask for a few experts more.
    void go_on_warming();
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
    Slots &pool_of(int32_t layer) { return pools_[layers_[layer].pool]; }
    void note_absent(int32_t layer);
    void clear_predictions();
    void start(int32_t layer, std::vector<int32_t> absent, const std::vector<int32_t> &held,
               int32_t most);
    void read(Prefetches &list, int32_t layer, int32_t expert, int32_t slot);
    void finish(Prefetch &prefetch);
    bool demand(Prefetch &prefetch);
    void cancel(Prefetch &prefetch);
    void judge_predictions(int32_t layer, const std::vector<int32_t> &chosen);
    void begin_warm(size_t count);
    void cut_warm(size_t count);
    void settle_warm(int32_t layer, const std::vector<int32_t> &chosen, Prefetches &coming);

    const std::vector<Layer> &layers_;
    std::vector<Slots> &pools_;
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
