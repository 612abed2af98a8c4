// Slots for experts in the memory of a ggml device, which computes with those that lie there. Copies are
// HIGH, and the device has the same eviction rule as the host.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "device_graph.hpp"
#include "layer.hpp"
#include "slots.hpp"
#include "tier_costs.hpp"

namespace haversack {

// What the caller sees of a tier.
struct TierState {
    int64_t hits;         // of the engine's hits, those on this device
    int64_t promoted, moved_bytes;  // experts that moved up, and bytes that were sent for them
    int32_t is_lost;      // the device failed: it is not used any more
};

class DeviceTier {
  public:
    // `workspace_bytes` are for the graphs' inputs and results. Throws DeviceError.
    DeviceTier(Device *device, int64_t workspace_bytes);

    // Pools in their order, with the layers of each. Returns false if the device has not the memory.
    bool add_pool(std::shared_ptr<ExpectedUse> rule, const std::vector<const Layer *> &layers,
                  int32_t num_slots);
    // The slots of a pool; null if it has none here.
    Slots *slots(int32_t pool) { return pools_[pool].slots.get(); }
    // Between passes: what is wrong with a pool's slots, to which `num_moving` experts are under way;
    // null if nothing is.
    const char *fault(int32_t pool, int32_t num_moving) const;
    // Where an expert of a layer has its READY copy; NOWHERE if it has none that can be used.
    int32_t find(const Layer &layer, int32_t expert) const;
    // Copy an expert's matrix into its slot; `from` has so many bytes, from `offset` on in the matrix.
    // Returns false if the device fails.
    bool write(const Layer &layer, int32_t matrix, int32_t slot, const void *from, int64_t offset,
               int64_t num_bytes);

    // Begin to compute the results of `pairs` with the experts in `slots`, one for each pair. Returns
    // false, and nothing has begun, if there is no graph for them. Throws DeviceError.
    bool start(const Layer &layer, const ExpertsGraph &form, const Choice &choice,
               std::vector<int32_t> pairs, const std::vector<int32_t> &slots);
    // Wait for them, and write each to its row of `result`.
    void finish(Tensor *result, const Choice &choice);
    // How many pairs a graph of this form may have.
    int32_t most_pairs(const ExpertsGraph &form) const;
    bool is_running() const { return !pairs_.empty(); }
    // The same for other threads.
    bool is_computing() const { return is_computing_; }
    // Wait until nothing is under way, and forget its results.
    void abandon();
    // The device has failed: nothing lies there any more.
    void lose();

    TierState state{};
    std::atomic<bool> has_failed{false};  // no error has told of it yet
    TierCosts costs;

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

    Device *const device_;
    Workspace workspace_;
    std::vector<PoolThere> pools_;
    std::map<std::pair<int32_t, int32_t>, Graphs> graphs_;  // by layer and first matrix of a call
    Staging upload_, results_;
    DeviceGraph *running_ = nullptr;
    double began_s_ = 0;
    std::atomic<bool> is_computing_{false};
    std::vector<int32_t> pairs_;  // of the graph that runs
    // The last member, so that it ends first: work of a lost device may still be under way, and uses the
    // buffers and graphs above.
    DeviceBackend backend_;
};

}  // namespace haversack
