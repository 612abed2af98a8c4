// Products of matrices with a few rows, each row with the bits that it would have alone.
#pragma once

#include <atomic>
#include <vector>

#include "ggml.hpp"
#include "shared_blocks.hpp"

namespace haversack {

// What is known of the products with weights of one type.
struct Kernels {
    bool depend_on_rows;  // whether llama.cpp's round several rows otherwise than one
    SharedDot shared;     // unpacks blocks once for all rows, with the same bits; null: none does
};
// It depends on the processor and on how llama.cpp was built, so it is tried once for each type.
const Kernels &kernels_of(int32_t type);

// A MUL_MAT or MUL_MAT_ID whose numbers have the bits of llama.cpp's dot product for single rows. The
// rows that multiply with a matrix take its tiles together, so they are read from memory once.
class MatrixProduct {
  public:
    MatrixProduct();
    MatrixProduct(const MatrixProduct &) = delete;

    // Two operations for a graph of the CPU backend: to prepare, and to multiply.
    Tensor steps[2];
    // `op` is what they compute from now on. Memory of an earlier one is used again.
    void begin(const Tensor *op, SharedDot shared);
    // Compute `op` too, if it multiplies other weights of the same form with the same rows, as a layer's
    // gate and up do: the rows are converted once, and threads wait for each other once. Return
    // whether it is.
    bool join(const Tensor *op);

  private:
    struct Group {  // rows of one matrix, by their place in `inputs_` and `outputs_`
        const char *matrix;
        int first, count;
    };
    static void prepare(Tensor *, int thread, int num_threads, void *self);
    static void multiply(Tensor *, int, int, void *self);

    void convert(int thread, int num_threads);
    void group_all();
    void group_by_expert();
    void add_row(const Tensor *op, int64_t in_i1, int64_t out_i1, int64_t i2, int64_t i3);
    void multiply_tile(const Group &group, int64_t first, int64_t end) const;

    std::vector<const Tensor *> ops_;
    const Tensor *weight_ = nullptr, *input_ = nullptr;  // of the first operation
    const TypeTraits *traits_ = nullptr;
    SharedDot shared_ = nullptr;
    std::vector<char> converted_;
    size_t row_bytes_ = 0;  // of `converted_`; 0 where the input is multiplied as it is
    std::vector<Group> groups_;
    std::vector<const char *> inputs_;
    std::vector<float *> outputs_;
    // Threads that take jobs change it, so it shares no cache line with what they only read.
    alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace haversack
