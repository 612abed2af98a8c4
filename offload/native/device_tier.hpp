// Slots for experts in the memory of a ggml device, which computes with those that lie there. Copies are
// HIGH, and the device has the same eviction rule as the host.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "batch_costs.hpp"
#include "device_graph.hpp"
#include "layer.hpp"
#include "slots.hpp"
#include "tier_costs.hpp"

namespace haversack {

// What the caller sees of a tier.
struct TierState {
    int64_t hits;         // of the engine's hits, those on this device
    int64_t promoted, moved_bytes;  // experts that moved up, and bytes that were sent for them
    int64_t streamed;     // of the engine's hits, those that were copied there for one batch
    int32_t is_lost;      // the device failed: it is not used any more
    int32_t streams_all;  // for tests: every expert that may be copied for a batch is, whatever it costs
};

class DeviceTier {
  public:
    // `workspace_bytes` are for the graphs' inputs and results. Each pool has `num_staging` slots more, for
    // experts that are computed once and do not stay. Throws DeviceError.
    DeviceTier(Device *device, int64_t workspace_bytes, int32_t num_staging);

    // Pools in their order, with the layers of each. Returns false if the device has not the memory.
    bool add_pool(std::shared_ptr<ExpectedUse> rule, const std::vector<const Layer *> &layers,
                  int32_t num_slots);
    // The slots of a pool; null if it has none here.
    Slots *slots(int32_t pool) { return pools_[pool].slots.get(); }
    // Between passes: what is wrong with a pool's slots, to which `num_moving` experts are under way;
    // null if nothing is.
    const char *fault(int32_t pool, int32_t num_moving) const;
    const int32_t num_staging;
    // The staging slots of a pool that has slots are the ones behind these.
    int32_t staging_slot(int32_t pool, int32_t number) { return slots(pool)->num_slots() + number; }
    // Where an expert of a layer has its READY copy; NOWHERE if it has none that can be used.
    int32_t find(const Layer &layer, int32_t expert) const;
    // Copy an expert's matrix into its slot; `from` has so many bytes, from `offset` on in the matrix.
    // Returns false if the device fails.
    bool write(const Layer &layer, int32_t matrix, int32_t slot, const void *from, int64_t offset,
               int64_t num_bytes);
    // The same the other way.
    bool read(const Layer &layer, int32_t matrix, int32_t slot, void *to, int64_t offset, int64_t num_bytes);

    // Keep the results of so many pairs of a layer, until they are collected.
    void reserve(const ExpertsGraph &form, size_t num_pairs);
    // Begin to compute the results of `pairs` with the experts in `slots`, one for each pair. Returns
    // false, and nothing has begun, if there is no graph for them. Throws DeviceError.
    bool start(const Layer &layer, const ExpertsGraph &form, const Choice &choice,
               const std::vector<int32_t> &pairs, const std::vector<int32_t> &slots);
    // Wait for them. More may be started then.
    void wait();
    // Write the results of all pairs to their rows of `result`.
    void collect(Tensor *result, const Choice &choice);
    // How many pairs a graph of this form may have.
    int32_t most_pairs(const ExpertsGraph &form) const;
    // Whether pairs were started that are not collected.
    bool is_running() const { return !pairs_.empty(); }
    // For other threads: whether it computes now.
    bool is_computing() const { return is_computing_; }
    // Wait until nothing is under way, and forget its results.
    void abandon();
    // The device has failed: nothing lies there any more.
    void lose();

    TierState state{};
    std::atomic<bool> has_failed{false};  // no error has told of it yet
    TierCosts costs;
    BatchCosts batch_costs;

  private:
    struct Matrices {
        Tensor *of_layer[MAX_MATRICES];
    };
    struct PoolThere {
        std::unique_ptr<Slots> slots;
        std::vector<DeviceBuffer> buffers;
        std::deque<Tensor> tensors;  // (K, M, slots) of each matrix and type
        std::map<int32_t, Matrices> layers;  // by number
    };
    struct Graphs {
        ExpertsGraph form;
        std::map<std::pair<int32_t, bool>, std::unique_ptr<DeviceGraph>> by_pairs;
    };
    Tensor *tensor_of(PoolThere &pool, const Matrix &matrix, int32_t num_slots) const;
    DeviceGraph *graph_of(const Layer &layer, const ExpertsGraph &form, int32_t num_pairs,
                          bool is_one_row);
    bool measure_link(const Layer &layer);
    // Have `call` copy a part of the matrix's tensor. Returns false if the device failed.
    template <typename Call> bool copy(const Layer &layer, int32_t matrix, Call call);
    void fetch();
    void forget();

    Device *const device_;
    Workspace workspace_;
    std::vector<PoolThere> pools_;
    std::map<std::pair<int32_t, int32_t>, Graphs> graphs_;  // by layer and first matrix of a call
    Staging upload_, results_;
    DeviceGraph *running_ = nullptr;
    double began_s_ = 0;
    std::atomic<bool> is_computing_{false};
    bool is_one_row_ = false;
    size_t num_waited_ = 0;       // of the pairs, those whose results are there
    std::vector<int32_t> pairs_;  // in the order of their results
    std::mutex calls_;            // RPC's back end mixes up calls of two threads
    // The last member, so that it ends first: work of a lost device may still be under way, and uses the
    // buffers and graphs above.
    DeviceBackend backend_;
};

}  // namespace haversack
