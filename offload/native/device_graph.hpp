// A graph of a layer's experts on a device, for a number of pairs. It is made once for each number and
// computed again and again: only ids and inputs change, so a graph that the device has captured stays
// right.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "device_memory.hpp"
#include "experts_graph.hpp"

namespace haversack {

// Where graphs have their inputs and results. One graph is computed at a time, so all use the same.
struct Workspace {
    DeviceBuffer buffer;
    size_t num_bytes, alignment;
};

class DeviceGraph {
  public:
    // `matrices` are tensors (K, M, slots) of the device. With `is_one_row` all pairs are experts of one
    // row.
    DeviceGraph(const Workspace &workspace, const ExpertsGraph &form, Tensor *const *matrices,
                int32_t num_pairs, bool is_one_row);
    ~DeviceGraph();
    DeviceGraph(const DeviceGraph &) = delete;

    // Whether the workspace has room for it.
    bool fits() const { return fits_; }
    // Write ids and inputs of `pairs` in the form that the upload has.
    void gather(const ExpertsGraph &form, const Choice &choice, const std::vector<int32_t> &pairs,
                const std::vector<int32_t> &slots, char *to) const;

    size_t upload_bytes = 0;
    Tensor upload{};           // all inputs and the ids, as bytes
    Tensor *result = nullptr;  // (M, pairs), rows in the order of the pairs
    Graph *graph = nullptr;

  private:
    Tensor *place(Tensor made);
    void connect(const ExpertsGraph &form, Tensor *const *matrices);

    const Workspace &workspace_;
    const bool is_one_row_;
    bool fits_ = true;
    size_t used_bytes_ = 0;
    std::deque<Tensor> tensors_;
    Tensor *ids_ = nullptr;
    std::vector<Tensor *> inputs_, steps_;
    std::unique_ptr<char[]> memory_;
    void *context_ = nullptr;
};

}  // namespace haversack
