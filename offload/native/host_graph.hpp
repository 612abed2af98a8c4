// The nodes of a layer's call for some of the experts of its only row: those that are computed here. Its
// other nodes stay as they are.
#pragma once

#include "experts_graph.hpp"

namespace haversack {

class HostGraph {
  public:
    // `pairs` are computed with the experts in `slots`. Results are written where those of all pairs
    // would lie, one after the other.
    void make(const ExpertsGraph &form, const std::vector<Tensor *> &nodes, const Choice &choice,
              const std::vector<int32_t> &pairs, const std::vector<int32_t> &slots, const Layer &layer);
    const std::vector<Tensor *> &nodes() const { return nodes_; }
    // Move the rows of the result to the places of their pairs.
    void spread(const ExpertsGraph &form, const std::vector<int32_t> &pairs) const;

  private:
    void gather(const ExpertsGraph &form, const Choice &choice, const std::vector<int32_t> &pairs);
    void place(const ExpertsGraph &form, int32_t step, Tensor *node, int64_t num_pairs);

    std::vector<Tensor *> nodes_;
    std::vector<Tensor> steps_, inputs_;
    Tensor weights_[MAX_MATRICES], ids_;
    std::vector<std::vector<float>> rows_;  // of the inputs that have one for each pair
    std::vector<int32_t> slots_;
};

}  // namespace haversack
