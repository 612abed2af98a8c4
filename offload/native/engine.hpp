// The experts of one model in one context: a call computes a layer. It takes the union of the experts
// that the pass's rows chose, leases slots for them, has those read that miss, and multiplies each as
// soon as it is there.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "device_tier.hpp"
#include "host_graph.hpp"
#include "leaning.hpp"
#include "prefetch.hpp"
#include "products.hpp"
#include "promoter.hpp"
#include "router.hpp"
#include "rows.hpp"
#include "streamer.hpp"

namespace haversack {

// Why a pass cannot go on.
enum Failure : int32_t {
    NO_FAILURE = 0, CALLER_FAILED, READ_FAILED, STOPPED, OTHER_CHOICE, PRODUCT_FAILED, BOOKS_WRONG,
    PRODUCTS_MISSING, DEVICE_FAILED,
    NO_SLOT,  // for the HIGH copy of an expert whose LOW one is damaged: never seen outside
};

// What predicts the choices of later layers.
enum Predictions : int32_t { NO_PREDICTIONS = 0, BY_ROUTERS, BY_CALLER };

// What the engine asks its caller.
struct Caller {
    Poll should_stop;
    // Write the experts that `layer`, by its own number, may choose, the likeliest first, and return
    // how many; 0: that is not known; less than 0: an exception was kept.
    int32_t (*predict)(int32_t layer, int32_t *experts);
};

// What the caller sees and sets between passes.
struct EngineState {
    int32_t predictions, failure;
    const Tensor *failed_node;
    Read *failed_read;  // the address of the read that failed: compare it, never follow it
    int64_t failed_offset, failed_need, failed_got;
    int32_t failed_file, failed_error;
    int64_t hits, misses, num_calls;
    int64_t low, skipped;    // of hits and misses: experts used LOW, and not at all
    int64_t saved_bytes;     // that missing experts took less than HIGH copies would have
    int64_t leaned;          // experts that were chosen only because they had a copy
    double own_s;  // time of its own steps: no read was waited for, nothing multiplied
    int32_t failed_tier;
};

// In place of a level in a lease: a device computes with this expert. If it is copied there for this batch,
// its slot on the host is pinned.
constexpr int32_t ELSEWHERE = SKIP + 1;

// Slots on a device. Fixed ones are filled at load and keep their experts. An exclusive tier's experts
// leave their slot on the host.
struct TierPlan {
    Device *device;
    const int32_t *num_slots;  // by pool
    int64_t workspace_bytes;
    int32_t num_staging;  // slots of each pool for experts of batches; 0: none is copied for a batch
    bool is_exclusive, is_fixed;
};

class Waves;

class Engine {
  public:
    // `num_used`: experts that a row uses; `most_rows`: rows of one graph of gathered rows.
    Engine(Caller caller, Readers *readers, int32_t num_used, int64_t most_rows);
    // Returns when no read is under way: the reads of prefetches go with it. The readers may be closed.
    ~Engine() { readers_.drain(); }

    // Pools first, then the layers in the order they run, then `finish`.
    void add_pool(const Pool &pool) {
        pools_.push_back(pool);
        num_slots_.push_back(pool.high.num_slots());
    }
    void add_layer(const Layer &layer) { layers_.push_back(layer); }
    // Devices follow, the fastest first. Returns false if a device has not the memory.
    bool add_tier(const TierPlan &plan);
    void finish();
    // Before the first pass: fill the slots on devices with experts of all layers in turn. Returns why
    // that failed.
    Failure fill_tiers();
    // Use low copies, before the first pass.
    void set_precision(const Precision &precision) { low_.set(precision); }
    bool wants_weights() const { return low_.exist(); }
    // Have routers' choices lean to experts with a copy, in passes of few rows.
    void set_leaning(Leaning leaning) { leaning_ = leaning; }
    bool leans() const { return leaning_.bias > 0; }
    // The place of the layer of that number if its router's choice among so many experts may lean, else
    // NOWHERE.
    int32_t leaning_layer(int32_t number, int64_t num_experts) const;
    // `order` has all experts of a layer for each row, the best first: move those to the front that a
    // leaning router chooses.
    void lean(int32_t layer, const Tensor *order);

    // Compute a layer's graph `nodes`, in which `products` multiply with its experts. `weights` are
    // those of the experts, (1, used, rows); null: they are not known, or not wanted.
    Status compute(int32_t layer, const std::vector<Tensor *> &nodes,
                   const std::vector<Product> &products, Cpu &cpu, const Tensor *weights = nullptr);
    // A pass has ended; `computed`: to its last node. Returns why it failed.
    Failure end_pass(bool computed);

    bool is_prefetching() const { return state.predictions != NO_PREDICTIONS && trial_.on(); }
    Pool &pool(int32_t number) { return pools_[number]; }
    Prefetcher &prefetcher() { return *prefetcher_; }
    LowCopies &low_copies() { return low_; }
    DeviceTier &tier(int32_t number) { return *tiers_[number]; }
    // Between passes: what is wrong with the books of the devices; null if nothing is.
    const char *tiers_fault();
    // Have no slot pinned for reads and copies that no layer waits for.
    void withdraw();
    // Between passes: have as many bytes as `num_slots` HIGH slots take.
    void resize_pool(int32_t number, int32_t num_slots);
    // Between passes: share the bytes of pools of two levels anew. Returns whether numbers of slots
    // changed; their memory has to follow before the next pass.
    bool balance();

    EngineState state{};

  private:
    struct Late {  // an expert of the lease that was not there when it began
        int32_t position;
        bool is_whole;  // of a LOW copy: it was found to be that of its record
        Read own[MAX_MATRICES];
        Read *reads[MAX_MATRICES];

        // The read to wait for before matrix `index` is multiplied.
        Read *read_before(int32_t index, int32_t num_matrices) const;
    };
    struct Lease {
        // By position in the choice: the level of each expert's copy, and its slot, which is pinned;
        // SKIP and NOWHERE for those that are not used.
        std::vector<int32_t> levels, slots;
        std::vector<int32_t> absent, absent_at;  // experts that had no slot, and their positions
        std::list<Late> late;
        Prefetches coming;  // those that are waited for
        int32_t num_not_high = 0, num_elsewhere = 0;

        // Whether some of the rows are not computed here.
        bool has_gaps() const { return num_not_high + num_elsewhere > 0; }
        int64_t num_low() const { return std::count(levels.begin(), levels.end(), LOW); }
        void clear();
        void add_elsewhere();
        void add_late(int32_t position, int32_t num_matrices, Read *coming);
    };
    struct Call {
        int32_t number;
        const Layer &layer;
        const Tensor *ids;
        const Choice &choice;
        Cpu &cpu;
        const std::vector<Tensor *> &nodes;
        const std::vector<Product> &products;
        const Tensor *weights;

        bool is_batch() const { return choice.num_rows > MOST_EXACT_ROWS; }
    };

    Status fail(Failure why, const Tensor *node = nullptr);
    Status fail_read(Read *read);
    bool wait(const std::vector<Read *> &reads, bool for_all);
    bool wait_for_any(const std::vector<int32_t> &positions, const std::vector<Read *> &reads);
    Status compute_layer(const Call &call);
    // leases (lease.cpp)
    void wish(const Call &call);
    std::vector<int32_t> levels_of_rows(const Choice &choice, const float *weights) const;
    int32_t wanted(size_t position) const { return wanted_.empty() ? HIGH : wanted_[position]; }
    bool fits(const Call &call) const;
    bool take_lease(const Call &call, Lease &lease);
    void sort_experts(const Call &call, Lease &lease);
    void choose_read_levels(const Call &call, Lease &lease);
    bool claim(const Call &call, Lease &lease, int32_t level);
    void start_reads(const Call &call, Lease &lease);
    bool is_whole(const Call &call, const Lease &lease, Late &late);
    bool read_high_instead(const Call &call, Lease &lease, Late &late);
    void release(const Call &call, Lease &lease);
    void count_levels(const Call &call, const Lease &lease);
    // products
    Status compute_leased(const Call &call, Lease &lease);
    Status compute_over_slots(const Call &call, const Lease &lease, int32_t first, int32_t num_slots);
    Status compute_those_here(const Call &call, const Lease &lease);
    Status multiply_as_they_come(const Call &call, Lease &lease, const Product &product);
    Status multiply(const Call &call, const Lease &lease, const Product &product,
                    const std::vector<int32_t> &positions);
    void skip(const Call &call, const Lease &lease, const Tensor *node);
    using Multiply = std::function<Status(const Product &)>;
    Status compute_nodes_between(const Call &call, const Multiply &multiply);
    // devices (tiers.cpp)
    void find_elsewhere(const Call &call);
    std::vector<int32_t> chosen_there(const Call &call, int32_t tier);
    void note_host_s(const Call &call, const Lease &lease, double taken_s);
    bool is_elsewhere(size_t position) const {
        return !tier_of_.empty() && tier_of_[position] != NOWHERE;
    }
    bool start_tiers(const Call &call);
    bool start_tier(const Call &call, int32_t tier);
    std::vector<Portion> portions(const Call &call, int32_t tier) const;
    Status finish_tiers(const Call &call);
    Status lose_tier(int32_t tier);
    void abandon_tiers();
    void abandon_tier(int32_t tier);
    bool all_tiers_work();
    void promote();
    bool fill_slot(const Layer &layer, int32_t expert, int32_t tier);
    // experts copied for a batch (streamed.cpp)
    void choose_streamed(const Call &call, Lease &lease);
    BatchShare share_of(const Call &call, const Lease &lease, int32_t tier) const;
    int64_t host_work(const Call &call, const Lease &lease) const;
    bool take_back_streamed();
    void note_batch_s(const Call &call, const Lease &lease, double taken_s);
    // waves (waves.cpp)
    Status compute_in_waves(const Call &call);
    void hold_high(const Call &call, Lease &lease);
    bool hold_low(const Call &call, Lease &lease);
    Status multiply_in_waves(const Call &call, Lease &lease, const Product &product);
    Status multiply_waves(const Call &call, Waves &waves);
    bool check_low(const Call &call, Lease &lease, std::vector<int32_t> &damaged);
    Status multiply_low(const Call &call, Lease &lease, const Product &product);
    std::vector<bool> residents_of(const Layer &layer) const;
    // predictions
    Status predict(const Call &call, int depth);
    Status predict_by_caller(const Call &call, int depth);
    void predict_by_routers(const Call &call, int depth);
    std::vector<int32_t> likely_choice(int32_t layer, const float *inputs) const;
    std::vector<int32_t> predicted_levels(int32_t layer, const float *inputs,
                                          const std::vector<int32_t> &experts) const;
    void predict_for_batch(const Call &call);
    void learn(const Call &call);
    // growth (growth.cpp)
    void grow_pools();
    void use_all_slots();
    int32_t num_made(int32_t pool);

    const Caller caller_;
    Readers &readers_;
    const int32_t num_used_;
    std::vector<Pool> pools_;
    std::vector<int32_t> num_slots_;  // of each pool of one level, when it has grown up
    std::vector<Layer> layers_;
    LowCopies low_{layers_};
    Leaning leaning_;
    std::vector<std::unique_ptr<DeviceTier>> tiers_;
    std::vector<std::unique_ptr<Promoter>> promoters_;  // by tier; null: it is fixed
    std::unique_ptr<Prefetcher> prefetcher_;
    ExpertProducts products_;
    Trial trial_;
    std::vector<Router> routers_;          // by layer
    std::vector<int32_t> attempts_left_;   // to learn a layer's router
    int64_t num_products_ = 0;             // of the model
    // Of the call under way; kept because to make them anew took as long as all the rest.
    Choice choice_;
    Lease lease_;
    std::vector<int32_t> wanted_;  // by position in the choice: at which level; empty: all HIGH
    std::vector<int32_t> slot_of_, slot_ids_;
    std::vector<Tensor *> graph_;
    std::vector<Tensor *> nodes_;       // of a call, from its first product on
    std::vector<Product> products_of_;  // there
    ExpertsGraph form_;
    HostGraph those_here_;
    KeptInputs kept_inputs_;
    bool is_form_known_ = false;
    std::vector<int32_t> tier_of_;  // by position in the choice; empty: none lies on a device
    // By position: its slot there. An expert may leave it meanwhile, but its bytes stay until the pass ends.
    std::vector<int32_t> slot_there_;
    std::vector<std::vector<int32_t>> there_, streamed_;  // by tier: positions that lie there, or are copied
    // Of the pass under way:
    int64_t products_seen_ = 0, rows_ = 0, needed_before_ = 0;
    int64_t hits_at_start_ = 0, misses_at_start_ = 0;
    double miss_share_ = 0;  // of the latest passes of few rows, `num_passes_` of them
    int32_t num_passes_ = 0;
    int64_t misses_before_ = 0, calls_since_read_ = 0;
    double began_s_ = 0, waited_before_s_ = 0, predicting_s_ = 0;
    // By tier. The last member, so that it ends first: it uses what stands above.
    std::vector<std::unique_ptr<Streamer>> streamers_;
};

}  // namespace haversack
