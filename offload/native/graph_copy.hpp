// A copy of a graph that is computed later: whoever made the graph may change or free its tensors as
// soon as they are handed over; their data stay.
#pragma once

#include <deque>
#include <unordered_map>
#include <vector>

#include "ggml.hpp"

namespace haversack {

class GraphCopy {
  public:
    explicit GraphCopy(Graph *graph);
    GraphCopy(const GraphCopy &) = delete;

    const std::vector<Tensor *> &nodes() const { return nodes_; }
    // How many bytes of weights, keys and values a device reads to compute it.
    int64_t bytes_read() const;
    // Make its results zeros.
    void clear() const;

  private:
    Tensor *copy(const Tensor *tensor);

    std::deque<Tensor> tensors_;
    std::unordered_map<const Tensor *, Tensor *> copies_;
    std::vector<Tensor *> nodes_;
};

}  // namespace haversack
