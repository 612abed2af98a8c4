// Products of a pass's rows with experts, wherever the experts lie: of all in one operation, or of a few
// at a time, as they arrive. The bits are those of llama.cpp's own MUL_MAT_ID, because each product is
// one, with all rows of an expert together.
#pragma once

#include <vector>

#include "cpu.hpp"
#include "layer.hpp"

namespace haversack {

// Which experts a pass's rows chose in a layer, from `ids` (used, rows). A pair is a row with one of its
// experts, numbered row * used + place.
struct Choice {
    // Read it from `ids`; memory of an earlier choice is used again.
    void read(const Tensor *ids, int32_t num_experts);

    int64_t num_rows = 0, num_used = 0;
    std::vector<int32_t> of_pairs;  // each pair's expert
    std::vector<int32_t> experts;   // the distinct ones; as chosen for a single row, else in order
    std::vector<int32_t> starts;    // where an expert's pairs begin in `pairs`, and the end
    std::vector<int32_t> pairs;

    int32_t count(int32_t position) const { return starts[position + 1] - starts[position]; }

  private:
    std::vector<int32_t> counts_, next_;  // by expert
};

class ExpertProducts {
  public:
    // A graph has at most `most_rows` rows of experts that several rows chose.
    explicit ExpertProducts(int64_t most_rows);

    // A layer begins: rows of an earlier one mean nothing any more.
    void begin_layer() { converted_from_ = nullptr; }
    // The product `node` is next, with experts' matrices like `matrix`.
    void begin(const Tensor *node, const Matrix &matrix, const Choice &choice);
    // Compute the rows of the experts at these positions of the choice, which lie in `slots`.
    Status run(const std::vector<int32_t> &positions, const std::vector<int32_t> &slots, Cpu &cpu);

  private:
    static constexpr size_t MOST_PRODUCTS = Cpu::MOST_NODES;  // of one graph

    struct Scattered {  // a product's result, to be copied to where its rows belong
        int32_t position;
        const float *out;
    };
    void convert();
    const uint8_t *row_of(int32_t pair) const;
    float *out_of(int32_t pair) const;
    void add(int32_t position, int32_t slot);
    Status flush(Cpu &cpu);

    const int64_t most_rows_;
    const Tensor *node_ = nullptr;
    const Matrix *matrix_ = nullptr;
    const Choice *choice_ = nullptr;
    // Rows in the type that the product wants, converted once however many experts use them.
    const Tensor *converted_from_ = nullptr;
    int32_t row_type_ = 0;
    int64_t row_bytes_ = 0;
    std::vector<uint8_t> converted_, gathered_;
    std::vector<float> out_;
    std::vector<int32_t> first_expert_;  // zeros
    std::vector<Tensor> tensors_;        // four a product
    std::vector<Tensor *> graph_;
    std::vector<Scattered> scattered_;
    int64_t num_gathered_ = 0;
};

}  // namespace haversack
