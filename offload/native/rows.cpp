#include "rows.hpp"

#include <algorithm>
#include <deque>
#include <vector>

#include "matrix_product.hpp"

namespace haversack {

namespace {

bool is_few(int64_t num_rows) { return num_rows >= 2 && num_rows <= MOST_EXACT_ROWS; }

// ------------------------------------------------------------------- products
// A product with fewer bytes of weight is not worth a call of its own for the time that shared blocks
// save.
constexpr int64_t WORTH_BYTES = 1 << 20;

bool takes_product(const Tensor *op) {
    const Tensor *weight = op->src[0], *input = op->src[1];
    const bool is_rotation = op->op_params[1] != 0;  // GGML_HINT_SRC0_IS_HADAMARD: has its own kernel
    if (!is_few(input->ne[1]) || is_rotation || input->type != TYPE_F32) return false;
    const Kernels &kernels = kernels_of(weight->type);
    const int64_t weight_bytes = weight->ne[1] * (int64_t)weight->nb[1];
    return kernels.depend_on_rows || (kernels.shared && weight_bytes >= WORTH_BYTES);
}

// llama.cpp's products with experts are exact. Over slots ours is faster for few rows of any type:
// llama.cpp looks at every slot, ours at those chosen. With 832 slots that took a layer of next to no
// weights 14 us of 66, with 3328 slots 24 us of 90.
bool picks_experts(const Tensor *op) {
    return op->op == ggml().op_mul_mat_id && op->src[2]->ne[1] <= MOST_EXACT_ROWS &&
           op->src[1]->type == TYPE_F32;
}

// It is also faster where rows share an expert's blocks, wherever the experts lie.
bool shares_experts(const Tensor *op) {
    return picks_experts(op) && op->src[2]->ne[1] > 1 && kernels_of(op->src[0]->type).shared;
}

bool is_ours(const Tensor *op) { return picks_experts(op) || takes_rows(op); }

// ---------------------------------------------------------------- attention
constexpr uint16_t HIDDEN = 0xFC00;   // minus infinity, as an F16 mask holds it
constexpr int64_t CELL_PADDING = 256;  // llama_kv_cache::get_n_kv
constexpr int64_t SPLIT_CELLS = 512;   // from here on a single row's cells are split among threads

// How many cells llama.cpp would hand to the row of this mask if it were alone. Cells lie in the
// order of positions: a sequence has cells of its own, and sliding windows keep all of them.
int64_t num_cells(const Tensor &mask) {
    auto *cells = (const uint16_t *)mask.data;
    int64_t count = mask.ne[0];
    while (count > 1 && cells[count - 1] == HIDDEN) count--;
    return std::min(mask.ne[0], (count + CELL_PADDING - 1) / CELL_PADDING * CELL_PADDING);
}

// The part of `tensor` at `index` of `axis`.
Tensor slice(Tensor tensor, int axis, int64_t index) {
    tensor.data = (char *)tensor.data + index % tensor.ne[axis] * tensor.nb[axis];
    tensor.ne[axis] = 1;
    return tensor;
}

// Only a single row's cells are split among the threads: the numbers of the parts are added in
// another order than those of all cells at once.
bool takes_attention(const Tensor *op) {
    const Tensor *query = op->src[0], *keys = op->src[1], *values = op->src[2], *mask = op->src[3];
    return is_few(query->ne[1] * query->ne[3]) && keys->ne[1] >= SPLIT_CELLS &&
           query->type == TYPE_F32 && keys->type == values->type &&
           (keys->type == TYPE_F16 || keys->type == TYPE_F32) && mask && mask->type == TYPE_F16 &&
           keys->ne[3] == query->ne[3];
}

// --------------------------------------------------------------------- steps
// A graph for the CPU backend, made of operations of llama.cpp's and ours. Memory of an earlier one is
// used again: each layer of each token has one.
class Steps {
  public:
    void clear() {
        nodes_.clear(), tensors_.clear();
        num_products_ = 0;
    }

    void add(Tensor *op) {
        if (!is_ours(op)) nodes_.push_back(op);
        else if (op->op == ggml().op_flash_attn_ext) add_attention(op);
        else add_product(op);
    }

    const std::vector<Tensor *> &nodes() const { return nodes_; }

  private:
    void add_product(const Tensor *op) {
        if (joins_latest(op)) return;
        // A lone row shares nothing, so its kernel need not be tried.
        const bool is_alone = op->op == ggml().op_mul_mat_id && op->src[2]->ne[1] == 1;
        const SharedDot shared = is_alone ? nullptr : kernels_of(op->src[0]->type).shared;
        if (num_products_ == products_.size()) products_.emplace_back();
        MatrixProduct &product = products_[num_products_++];
        product.begin(op, shared);
        for (Tensor &step : product.steps) nodes_.push_back(&step);
    }

    // Only the node behind the latest product may join it: a later one may write its result where other
    // nodes' operands still lie then.
    bool joins_latest(const Tensor *op) {
        if (num_products_ == 0) return false;
        MatrixProduct &latest = products_[num_products_ - 1];
        return nodes_.back() == &latest.steps[1] && latest.join(op);
    }

    // One attention for each row; `op` has (D, heads, rows, sequences), its query (D, rows, heads,
    // sequences), keys and values (D, cells, heads, sequences), its mask (cells, rows, 1, sequences).
    void add_attention(const Tensor *op) {
        for (int64_t sequence = 0; sequence < op->ne[3]; sequence++)
            for (int64_t row = 0; row < op->ne[2]; row++) {
                Tensor one = slice(slice(*op, 3, sequence), 2, row);
                Tensor keys = slice(*op->src[1], 3, sequence);
                Tensor values = slice(*op->src[2], 3, sequence);
                Tensor mask = slice(slice(*op->src[3], 3, sequence), 1, row);
                keys.ne[1] = values.ne[1] = mask.ne[0] = num_cells(mask);
                one.src[0] = keep(slice(slice(*op->src[0], 3, sequence), 1, row));
                one.src[1] = keep(keys);
                one.src[2] = keep(values);
                one.src[3] = keep(mask);
                nodes_.push_back(keep(one));
            }
    }

    Tensor *keep(const Tensor &tensor) { return &tensors_.emplace_back(tensor); }

    std::deque<Tensor> tensors_;
    std::deque<MatrixProduct> products_;
    size_t num_products_ = 0;  // of this graph
    std::vector<Tensor *> nodes_;
};

Status compute_in_parts(Tensor *const *nodes, size_t count, Cpu &cpu) {
    Status status = SUCCESS;
    for (size_t i = 0; i < count && status == SUCCESS; i += Cpu::MOST_NODES)
        status = cpu.compute(nodes + i, std::min(count - i, Cpu::MOST_NODES));
    return status;
}

}  // namespace

bool takes_rows(const Tensor *op) {
    if (op->op == ggml().op_mul_mat) return takes_product(op);
    if (op->op == ggml().op_mul_mat_id) return shares_experts(op);
    return op->op == ggml().op_flash_attn_ext && takes_attention(op);
}

Status compute_nodes(Tensor *const *nodes, size_t count, Cpu &cpu) {
    if (std::none_of(nodes, nodes + count, is_ours)) return compute_in_parts(nodes, count, cpu);
    static thread_local Steps steps;
    steps.clear();
    for (size_t i = 0; i < count; i++) steps.add(nodes[i]);
    return compute_in_parts(steps.nodes().data(), steps.nodes().size(), cpu);
}

}  // namespace haversack
