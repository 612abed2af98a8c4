#include "rows.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace haversack {

namespace {

bool is_few(int64_t num_rows) { return num_rows >= 2 && num_rows <= MOST_EXACT_ROWS; }

// ---------------------------------------------------------------- a product
constexpr int64_t WEIGHT_TILE = 4;  // weight rows that stay in the cache while all rows take them
constexpr int ALL_THREADS = -1;     // GGML_N_TASKS_MAX

// A MUL_MAT whose every number is one call of the dot product that llama.cpp takes for a single row.
// The rows take a tile of the weight together, so it is read from memory once.
struct MatrixProduct {
    const Tensor *op, *weight, *input;
    const TypeTraits *traits;
    std::vector<char> converted;  // the input's rows in the type that the dot product wants
    size_t row_bytes = 0;         // of `converted`; 0 where the input has that type itself
    std::atomic<int64_t> next{0};

    explicit MatrixProduct(const Tensor *op)
        : op(op), weight(op->src[0]), input(op->src[1]),
          traits(ggml().get_type_traits_cpu(weight->type)) {
        if (input->type == traits->vec_dot_type) return;
        row_bytes = ggml().row_bytes(traits->vec_dot_type, input->ne[0]);
        converted.resize(row_bytes * input->ne[1] * input->ne[2] * input->ne[3]);
    }

    const char *input_row(int64_t i1, int64_t i2, int64_t i3) const {
        if (row_bytes == 0) return input->row(i1, i2) + i3 * input->nb[3];
        return converted.data() + ((i3 * input->ne[2] + i2) * input->ne[1] + i1) * row_bytes;
    }

    void convert(int thread, int num_threads) {
        auto from_float = ggml().get_type_traits_cpu(traits->vec_dot_type)->from_float;
        const int64_t *ne = input->ne;
        for (int64_t row = thread; row < ne[1] * ne[2] * ne[3]; row += num_threads) {
            int64_t i1 = row % ne[1], i2 = row / ne[1] % ne[2], i3 = row / ne[1] / ne[2];
            from_float((const float *)(input->row(i1, i2) + i3 * input->nb[3]),
                       converted.data() + row * row_bytes, ne[0]);
        }
    }

    // Every thread takes tiles until none is left.
    void multiply() {
        const int64_t num_tiles = (weight->ne[1] + WEIGHT_TILE - 1) / WEIGHT_TILE;
        const int64_t num_jobs = num_tiles * op->ne[2] * op->ne[3];
        for (int64_t job; (job = next.fetch_add(1, std::memory_order_relaxed)) < num_jobs;) {
            int64_t i2 = job / num_tiles % op->ne[2], i3 = job / num_tiles / op->ne[2];
            multiply_tile(job % num_tiles * WEIGHT_TILE, i2, i3);
        }
    }

    void multiply_tile(int64_t first, int64_t i2, int64_t i3) const {
        const char *matrix = weight->row(0, i2 / (op->ne[2] / weight->ne[2])) +
                             i3 / (op->ne[3] / weight->ne[3]) * weight->nb[3];
        const int64_t end = std::min(first + WEIGHT_TILE, weight->ne[1]);
        for (int64_t i1 = 0; i1 < input->ne[1]; i1++) {
            const char *in = input_row(i1, i2, i3);
            auto *out = (float *)(op->row(i1, i2) + i3 * op->nb[3]);
            for (int64_t i0 = first; i0 < end; i0++)
                traits->vec_dot((int)weight->ne[0], out + i0, 0, matrix + i0 * weight->nb[1], 0, in, 0,
                                1);
        }
    }
};

void convert(Tensor *, int thread, int num_threads, void *product) {
    ((MatrixProduct *)product)->convert(thread, num_threads);
}

void multiply(Tensor *, int, int, void *product) { ((MatrixProduct *)product)->multiply(); }

// An operation that calls `function` on all threads of the CPU backend.
Tensor custom(void (*function)(Tensor *, int, int, void *), void *data) {
    struct {  // struct ggml_custom_op_params
        void (*function)(Tensor *, int, int, void *);
        int num_tasks;
        void *data;
    } params = {function, ALL_THREADS, data};
    Tensor made = make_tensor(TYPE_F32, 1, 1, 1, nullptr);
    made.op = ggml().op_custom;
    static_assert(sizeof params <= sizeof made.op_params);
    std::memcpy(made.op_params, &params, sizeof params);
    return made;
}

// ---------------------------------------------------------------- attention
constexpr uint16_t HIDDEN = 0xFC00;   // minus infinity, as an F16 mask holds it
constexpr int64_t CELL_PADDING = 256;  // llama_kv_cache::get_n_kv
constexpr int64_t SPLIT_CELLS = 512;   // from here on a single row's cells are split among threads

// How many cells llama.cpp would hand to the row of this mask if it were alone. Cells lie in the order
// of positions: contexts have a stream of cells per sequence, and sliding windows keep all cells.
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

// --------------------------------------------------------------------- steps
// A graph for the CPU backend, made of operations of llama.cpp's and ours.
class Steps {
  public:
    void add(Tensor *op) {
        if (!depends_on_rows(op)) {
            nodes_.push_back(op);
        } else if (op->op == ggml().op_mul_mat) {
            add_product(op);
        } else {
            add_attention(op);
        }
    }

    void add_product(const Tensor *op) {
        MatrixProduct &product = products_.emplace_back(op);
        if (product.row_bytes) add(custom(convert, &product));
        add(custom(multiply, &product));
    }

    Status compute(Cpu &cpu) const {
        Status status = SUCCESS;
        for (size_t i = 0; i < nodes_.size() && status == SUCCESS; i += Cpu::MOST_NODES)
            status = cpu.compute(&nodes_[i], std::min(nodes_.size() - i, Cpu::MOST_NODES));
        return status;
    }

  private:
    Tensor *keep(const Tensor &tensor) { return &tensors_.emplace_back(tensor); }
    void add(const Tensor &made) { nodes_.push_back(keep(made)); }

    // One attention for each row; `op` has (D, heads, rows, sequences), its query (D, rows, heads,
    // sequences), keys and values (D, cells, heads, sequences), its mask (cells, rows, 1, sequences).
    void add_attention(const Tensor *op) {
        for (int64_t sequence = 0; sequence < op->ne[3]; sequence++)
            for (int64_t row = 0; row < op->ne[2]; row++) {
                Tensor one = slice(slice(*op, 3, sequence), 2, row);
                Tensor keys = slice(*op->src[1], 3, sequence), values = slice(*op->src[2], 3, sequence);
                Tensor mask = slice(slice(*op->src[3], 3, sequence), 1, row);
                keys.ne[1] = values.ne[1] = mask.ne[0] = num_cells(mask);
                one.src[0] = keep(slice(slice(*op->src[0], 3, sequence), 1, row));
                one.src[1] = keep(keys);
                one.src[2] = keep(values);
                one.src[3] = keep(mask);
                add(one);
            }
    }

    std::deque<Tensor> tensors_;
    std::deque<MatrixProduct> products_;
    std::vector<Tensor *> nodes_;
};

// -------------------------------------------------------------------- kernels
// A trial product of random numbers, of several rows and of each row alone.
class Trial {
  public:
    explicit Trial(int32_t type) {
        uint32_t state = 1;
        auto random = [&state] { return (state = state * 1664525 + 1013904223) >> 24; };
        // Small bytes make finite numbers of whatever type reads them.
        weights_.resize(ggml().row_bytes(type, LENGTH) * NUM_WEIGHTS);
        for (char &byte : weights_) byte = (char)(random() % 0x3C);
        input_.resize(LENGTH * MOST_EXACT_ROWS);
        for (float &number : input_) number = (float)random() / 128 - 1;
        weight_ = make_tensor(type, LENGTH, NUM_WEIGHTS, 1, weights_.data());
    }

    // Whether llama.cpp's kernels round several rows otherwise than one, and ours does not.
    bool tells_rows_apart() {
        const std::vector<float> alone = compute(1, false);
        if (compute(MOST_EXACT_ROWS, true) != alone) return false;
        for (int64_t together = 2; together <= MOST_EXACT_ROWS; together++)
            if (compute(together, false) != alone) return true;
        return false;
    }

  private:
    static constexpr int64_t LENGTH = 1024, NUM_WEIGHTS = 32;

    // The product of all rows, `together` of them at a time.
    std::vector<float> compute(int64_t together, bool is_ours) {
        std::vector<float> output(NUM_WEIGHTS * MOST_EXACT_ROWS);
        Cpu cpu(1);
        for (int64_t row = 0; row < MOST_EXACT_ROWS; row += together) {
            const int64_t count = std::min(together, MOST_EXACT_ROWS - row);
            Tensor input = make_tensor(TYPE_F32, LENGTH, count, 1, &input_[row * LENGTH]);
            Tensor op = make_tensor(TYPE_F32, NUM_WEIGHTS, count, 1, &output[row * NUM_WEIGHTS]);
            op.op = ggml().op_mul_mat;
            op.src[0] = &weight_;
            op.src[1] = &input;
            Tensor *node = &op;
            Steps ours;
            ours.add_product(node);
            if ((is_ours ? ours.compute(cpu) : cpu.compute(&node, 1)) != SUCCESS) return {};
        }
        return output;
    }

    std::vector<char> weights_;
    std::vector<float> input_;
    Tensor weight_;
};

// It depends on the processor and on how llama.cpp was built, so it is tried once for each type.
bool kernels_depend_on_rows(int32_t type) {
    if (!ggml().get_type_traits_cpu(type)->vec_dot) return false;
    static std::mutex mutex;
    static std::unordered_map<int32_t, bool> known;
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known.find(type);
    if (found == known.end()) found = known.emplace(type, Trial(type).tells_rows_apart()).first;
    return found->second;
}

bool product_depends_on_rows(const Tensor *op) {
    const Tensor *weight = op->src[0], *input = op->src[1];
    const bool is_rotation = op->op_params[1] != 0;  // GGML_HINT_SRC0_IS_HADAMARD: has its own kernel
    return is_few(input->ne[1]) && !is_rotation && input->type == TYPE_F32 &&
           kernels_depend_on_rows(weight->type);
}

// Only a single row's cells are split among the threads: the numbers of the parts are added in
// another order than those of all cells at once.
bool attention_depends_on_rows(const Tensor *op) {
    const Tensor *query = op->src[0], *keys = op->src[1], *values = op->src[2], *mask = op->src[3];
    return is_few(query->ne[1] * query->ne[3]) && keys->ne[1] >= SPLIT_CELLS &&
           query->type == TYPE_F32 && keys->type == values->type &&
           (keys->type == TYPE_F16 || keys->type == TYPE_F32) && mask && mask->type == TYPE_F16 &&
           keys->ne[3] == query->ne[3];
}

}  // namespace

bool depends_on_rows(const Tensor *op) {
    if (op->op == ggml().op_mul_mat) return product_depends_on_rows(op);
    return op->op == ggml().op_flash_attn_ext && attention_depends_on_rows(op);
}

Status compute_nodes(Tensor *const *nodes, size_t count, Cpu &cpu) {
    Steps steps;
    for (size_t i = 0; i < count; i++) steps.add(nodes[i]);
    return steps.compute(cpu);
}

}  // namespace haversack
