// The part of a layer's graph that belongs to its experts: their products, and what lies between and
// behind them. Each pair of a row and an expert is computed there without the other pairs. So some
// pairs can be computed in a graph of their own, elsewhere.
#pragma once

#include <vector>

#include "cpu.hpp"
#include "products.hpp"

namespace haversack {

// A product in the graph of a call: its place among the nodes, and which matrix of the experts it
// multiplies with.
struct Product {
    size_t at;
    int32_t index;
};

// Copies of inputs.
struct KeptInputs {
    std::vector<std::vector<float>> rows;
    std::vector<Tensor> tensors;
};

class ExpertsGraph {
  public:
    enum SourceKind : int32_t { NO_SOURCE = 0, STEP, INPUT, MATRIX, IDS };
    struct Source {
        SourceKind kind;
        int32_t index;
        bool operator==(const Source &other) const {
            return kind == other.kind && index == other.index;
        }
    };
    struct Step {
        int32_t op, op_params[16];
        int64_t length;       // of a row
        size_t offset_bytes;  // of a view, in each row of its source
        Source sources[3];

        bool is_view() const;
        bool operator==(const Step &other) const;
    };
    // What comes from outside: rows of pairs, of tokens (the same for all its experts) or of experts.
    struct Input {
        const Tensor *tensor;
        int64_t length;
        bool is_of_token, is_of_expert;  // whether a row belongs to a token or (a bias) to an expert

        const char *row(const Choice &choice, int32_t pair) const;
    };

    // Read it from the nodes of a call. Returns false if they are of a form that is not known.
    bool read(const std::vector<Tensor *> &nodes, const std::vector<Product> &products,
              const Choice &choice);
    // Whether graphs made for the other one serve this one.
    bool is_like(const ExpertsGraph &other) const;
    // The tensor of a step for `num_pairs` experts of a row, or so many rows with one expert each;
    // without data and sources, and contiguous unless it is a view.
    static Tensor tensor_of(const Step &step, int64_t num_used, int64_t num_rows);
    // The first matrix that its products multiply with.
    int32_t first_matrix() const { return steps[0].sources[0].index; }
    // Whether its products multiply with this matrix, and the bytes of an expert's matrices of which that is
    // so.
    bool uses(int32_t matrix) const;
    int64_t matrix_bytes(const Layer &layer) const;
    // Bytes of the results and inputs of one pair.
    int64_t pair_bytes() const;

    // Have the rows of inputs be read from `kept`, where they are copied: other nodes may then be
    // computed, whose results may lie in the same place.
    void keep_inputs(KeptInputs &kept);

    // Which step a node is; -1 if it is none.
    int32_t place_of(const Tensor *node) const;

    std::vector<Step> steps;
    std::vector<Input> inputs;
    Tensor *result = nullptr;  // the node of the last step, which alone is used by others

  private:
    bool add(const Tensor *node, int32_t matrix, const Choice &choice);
    bool add_source(Step &step, int index, const Tensor *source, const Choice &choice);
    bool has_one_result(const std::vector<Tensor *> &nodes);

    const Tensor *ids_ = nullptr;
    std::vector<const Tensor *> nodes_;   // of the steps
    std::vector<const Tensor *> others_;  // nodes that views show, of which no step is made
};

}  // namespace haversack
