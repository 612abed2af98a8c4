// haversack's ggml device. llama.cpp makes a backend of it for every context in the process; the
// backend of one of our contexts computes the products with routed experts, and in passes of a few
// rows the operations whose bits depend on the number of rows. Other contexts are left alone.
#pragma once

#include <unordered_map>
#include <vector>

#include "engine.hpp"

namespace haversack {

// What the device does for one context of llama.cpp.
class ContextDevice {
  public:
    // `engine` multiplies with experts; null where llama.cpp holds all of them itself.
    ContextDevice(Engine *engine, int num_threads) : engine_(engine), cpu_(num_threads) {}

    // A weight of llama.cpp's that stands for the matrix numbered `index` of a layer's experts; the
    // last one gives the layer's result.
    void add_weight(const Tensor *weight, int layer, int index, bool is_last);

    bool claims(const Tensor *op) const;
    Status compute(Graph *graph);
    // Whether llama.cpp has asked for a router's choice that leans.
    bool can_lean() const { return can_lean_; }

  private:
    struct Weight {
        int layer, index;
        bool is_last;
    };
    const Weight *weight_of(const Tensor *product) const;
    const Weight *nearest_product(const Tensor *op) const;
    bool claims_between(const Tensor *op) const;
    int32_t leaning_layer(const Tensor *op) const;
    void begin_run();
    Status compute_run(Graph *graph);

    Engine *const engine_;
    Cpu cpu_;
    mutable bool can_lean_ = false;
    // Of the call under way, the nodes that are to be computed together:
    std::vector<Tensor *> nodes_;
    std::vector<Product> products_;
    int layer_ = 0;  // of the products
    std::unordered_map<const Tensor *, Weight> weights_;
};

// Register the device with the libggml of a build, once for the process. Returns what is wrong, or an
// empty text.
const char *register_device(const Build &build);

// Address space without memory, where llama.cpp believes its expert weights to lie. While a model
// loads, the buffer says that it is no host memory and that tensors in it have no bytes, so the
// loader writes nothing. Afterwards it counts as host memory, so no result is copied for the device.
class ExpertBuffer {
  public:
    ExpertBuffer();
    ~ExpertBuffer();
    ExpertBuffer(const ExpertBuffer &) = delete;

    // For tensor_buft_overrides.
    BufferType *type() { return type_.address(); }
    bool loading = true;
    std::vector<Tensor *> weights;  // those placed here, in order
    bool failed = false;            // there was no address space left

  private:
    static ExpertBuffer *of(BufferType *type) { return (ExpertBuffer *)OwnBufferType::context_of(type); }
    static Buffer *allocate(BufferType *type, size_t num_bytes);
    static Status keep(Buffer *buffer, Tensor *tensor);

    OwnBufferType type_;
    std::vector<std::pair<void *, size_t>> spaces_;
};

}  // namespace haversack
