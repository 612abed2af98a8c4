// llama.cpp's CPU backend, for graphs of our own over its tensors and ours.
#pragma once

#include <memory>

#include "ggml.hpp"

namespace haversack {

class Cpu {
  public:
    explicit Cpu(int num_threads, size_t most_nodes = MOST_NODES);
    ~Cpu();
    Cpu(const Cpu &) = delete;

    static constexpr size_t MOST_NODES = 128;  // of one graph

    // Compute `nodes`, at most `most_nodes`, in this order. Nothing is written but their data.
    Status compute(Tensor *const *nodes, size_t count);

    double computed_s = 0;  // time spent in `compute` since it was made

  private:
    Backend *const backend_;
    std::unique_ptr<char[]> memory_;
    void *context_;
    Graph *graph_;
};

// A tensor (ne0, ne1, ne2) of ours without gaps, or with `stride` bytes between its matrices.
Tensor make_tensor(int32_t type, int64_t ne0, int64_t ne1, int64_t ne2, const void *data,
                   size_t stride = 0);

}  // namespace haversack
