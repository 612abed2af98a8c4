#include "matrix_product.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "cpu.hpp"
#include "rows.hpp"

namespace haversack {

namespace {

constexpr int64_t WEIGHT_TILE = 4;  // weight rows that stay in the cache while all rows take them
// A thread takes up to so much of a matrix at once, because memory is read fastest in long stretches:
// with one tile at a time, two rows of a large model took 1.8 times as long. But each thread gets
// several jobs, so that all end at about the same time.
constexpr int64_t MOST_JOB_BYTES = 1 << 16, JOBS_PER_THREAD = 4;
constexpr size_t MOST_KEPT_BYTES = 1 << 20;  // of converted rows, for the next product
constexpr int ALL_THREADS = -1;              // GGML_N_TASKS_MAX

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

}  // namespace

// -------------------------------------------------------------------- product
MatrixProduct::MatrixProduct() : steps{custom(prepare, this), custom(multiply, this)} {}

void MatrixProduct::begin(const Tensor *op, SharedDot shared) {
    ops_.assign(1, op);
    weight_ = op->src[0], input_ = op->src[1];
    traits_ = ggml().get_type_traits_cpu(weight_->type);
    shared_ = weight_->ne[0] % SHARED_LENGTH == 0 ? shared : nullptr;
    groups_.clear(), inputs_.clear(), outputs_.clear();
    next_ = 0;
    const bool converts = input_->type != traits_->vec_dot_type;
    row_bytes_ = converts ? ggml().row_bytes(traits_->vec_dot_type, input_->ne[0]) : 0;
    const size_t num_bytes = row_bytes_ * input_->ne[1] * input_->ne[2] * input_->ne[3];
    if (converted_.size() < num_bytes || converted_.size() > MOST_KEPT_BYTES)
        std::vector<char>(num_bytes).swap(converted_);
}

bool MatrixProduct::join(const Tensor *op) {
    const Tensor *first = ops_[0], *weight = op->src[0];
    if (op->op != ggml().op_mul_mat_id || first->op != op->op) return false;
    if (op->src[1] != first->src[1] || op->src[2] != first->src[2]) return false;
    if (weight->type != weight_->type || weight->nb[1] != weight_->nb[1]) return false;
    if (weight->ne[0] != weight_->ne[0] || weight->ne[1] != weight_->ne[1]) return false;
    ops_.push_back(op);
    return true;
}

void MatrixProduct::prepare(Tensor *, int thread, int num_threads, void *self) {
    auto *product = (MatrixProduct *)self;
    const bool is_plain = product->ops_[0]->op == ggml().op_mul_mat;
    if (thread == 0) is_plain ? product->group_all() : product->group_by_expert();
    if (product->row_bytes_) product->convert(thread, num_threads);
}

// The rows in the type that the dot product wants. Each thread converts a part of each row, because
// there may be one row alone.
void MatrixProduct::convert(int thread, int num_threads) {
    const int32_t type = traits_->vec_dot_type;
    const auto from_float = ggml().get_type_traits_cpu(type)->from_float;
    const int64_t *ne = input_->ne, block = ggml().blck_size(type), num_blocks = ne[0] / block;
    const int64_t first = thread * num_blocks / num_threads;
    const int64_t end = (thread + 1) * num_blocks / num_threads;
    if (first == end) return;
    for (int64_t row = 0; row < ne[1] * ne[2] * ne[3]; row++) {
        const int64_t i1 = row % ne[1], i2 = row / ne[1] % ne[2], i3 = row / ne[1] / ne[2];
        from_float((const float *)(input_->row(i1, i2) + i3 * input_->nb[3]) + first * block,
                   converted_.data() + row * row_bytes_ + first * ggml().type_size(type),
                   (end - first) * block);
    }
}

void MatrixProduct::group_all() {
    const Tensor *op = ops_[0];
    for (int64_t i3 = 0; i3 < op->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < op->ne[2]; i2++) {
            const char *matrix = weight_->row(0, i2 / (op->ne[2] / weight_->ne[2])) +
                                 i3 / (op->ne[3] / weight_->ne[3]) * weight_->nb[3];
            groups_.push_back({matrix, (int)inputs_.size(), (int)input_->ne[1]});
            for (int64_t i1 = 0; i1 < input_->ne[1]; i1++) add_row(op, i1, i1, i2, i3);
        }
}

void MatrixProduct::group_by_expert() {
    const Tensor *ids = ops_[0]->src[2];
    std::vector<std::pair<int32_t, int64_t>> pairs;  // an expert, and a row with its place there
    for (int64_t pair = 0; pair < ids->ne[0] * ids->ne[1]; pair++)
        pairs.emplace_back(*(int32_t *)(ids->row(pair / ids->ne[0]) + pair % ids->ne[0] * ids->nb[0]),
                           pair);
    std::sort(pairs.begin(), pairs.end());
    for (const Tensor *op : ops_)
        for (const auto &[expert, pair] : pairs) {
            const char *matrix = op->src[0]->row(0, expert);
            if (groups_.empty() || groups_.back().matrix != matrix)
                groups_.push_back({matrix, (int)inputs_.size(), 0});
            groups_.back().count++;
            const int64_t place = pair % ids->ne[0];
            add_row(op, place % input_->ne[1], place, pair / ids->ne[0], 0);
        }
}

void MatrixProduct::add_row(const Tensor *op, int64_t in_i1, int64_t out_i1, int64_t i2, int64_t i3) {
    const int64_t row = (i3 * input_->ne[2] + i2) * input_->ne[1] + in_i1;
    inputs_.push_back(row_bytes_ ? converted_.data() + row * row_bytes_
                                 : input_->row(in_i1, i2) + i3 * input_->nb[3]);
    outputs_.push_back((float *)(op->row(out_i1, i2) + i3 * op->nb[3]));
}

// Every thread takes jobs until none is left.
void MatrixProduct::multiply(Tensor *, int, int num_threads, void *self) {
    auto *product = (MatrixProduct *)self;
    const int64_t num_rows = product->weight_->ne[1], num_groups = product->groups_.size();
    const int64_t num_tiles = (num_rows + WEIGHT_TILE - 1) / WEIGHT_TILE;  // of a matrix
    const int64_t most_tiles = MOST_JOB_BYTES / (WEIGHT_TILE * (int64_t)product->weight_->nb[1]);
    const int64_t fair_tiles = num_groups * num_tiles / (JOBS_PER_THREAD * num_threads);
    const int64_t wanted_tiles = std::max<int64_t>(1, std::min(fair_tiles, most_tiles));
    const int64_t per_group = (num_tiles + wanted_tiles - 1) / wanted_tiles;
    const int64_t job_rows = (num_tiles + per_group - 1) / per_group * WEIGHT_TILE;  // all alike
    for (int64_t job; (job = product->next_.fetch_add(1, std::memory_order_relaxed)) <
                      per_group * num_groups;) {
        const int64_t first = job % per_group * job_rows, end = std::min(first + job_rows, num_rows);
        for (int64_t tile = first; tile < end; tile += WEIGHT_TILE)
            product->multiply_tile(product->groups_[job / per_group], tile,
                                   std::min(tile + WEIGHT_TILE, end));
    }
}

void MatrixProduct::multiply_tile(const Group &group, int64_t first, int64_t end) const {
    const int64_t length = weight_->ne[0];
    const size_t row_bytes = weight_->nb[1];
    if (shared_ && group.count > 1 && group.count <= MOST_EXACT_ROWS) {
        float results[MOST_EXACT_ROWS];
        for (int64_t i0 = first; i0 < end; i0++) {
            shared_(length, group.matrix + i0 * row_bytes, &inputs_[group.first], results,
                    group.count);
            for (int r = 0; r < group.count; r++) outputs_[group.first + r][i0] = results[r];
        }
        return;
    }
    const auto vec_dot = traits_->vec_dot;
    for (int r = group.first; r < group.first + group.count; r++) {
        const char *input = inputs_[r];
        float *output = outputs_[r];
        for (int64_t i0 = first; i0 < end; i0++)
            vec_dot((int)length, output + i0, 0, group.matrix + i0 * row_bytes, 0, input, 0, 1);
    }
}

// -------------------------------------------------------------------- kernels
namespace {

// A trial product of random numbers, of several rows and of each row alone.
class KernelTrial {
  public:
    explicit KernelTrial(int32_t type) {
        uint32_t state = 1;
        auto random = [&state] { return (state = state * 1664525 + 1013904223) >> 24; };
        // Small bytes make finite numbers of whatever type reads them.
        weights_.resize(ggml().row_bytes(type, LENGTH) * NUM_WEIGHTS);
        for (char &byte : weights_) byte = (char)(random() % 0x3C);
        input_.resize(LENGTH * MOST_EXACT_ROWS);
        for (float &number : input_) number = (float)random() / 128 - 1;
        weight_ = make_tensor(type, LENGTH, NUM_WEIGHTS, 1, weights_.data());
        alone_ = compute(1, false, nullptr);
    }

    // Whether our product has the bits of single rows.
    bool is_exact(SharedDot shared) { return compute(MOST_EXACT_ROWS, true, shared) == alone_; }

    // Whether llama.cpp's has not.
    bool depends_on_rows() {
        for (int64_t together = 2; together <= MOST_EXACT_ROWS; together++)
            if (compute(together, false, nullptr) != alone_) return true;
        return false;
    }

  private:
    static constexpr int64_t LENGTH = 1024, NUM_WEIGHTS = 32;

    // The product of all rows, `together` of them at a time.
    std::vector<float> compute(int64_t together, bool is_ours, SharedDot shared) {
        std::vector<float> output(NUM_WEIGHTS * MOST_EXACT_ROWS);
        Cpu cpu(1);
        for (int64_t row = 0; row < MOST_EXACT_ROWS; row += together) {
            const int64_t count = std::min(together, MOST_EXACT_ROWS - row);
            Tensor input = make_tensor(TYPE_F32, LENGTH, count, 1, &input_[row * LENGTH]);
            Tensor op = make_tensor(TYPE_F32, NUM_WEIGHTS, count, 1, &output[row * NUM_WEIGHTS]);
            op.op = ggml().op_mul_mat;
            op.src[0] = &weight_;
            op.src[1] = &input;
            MatrixProduct ours;
            ours.begin(&op, shared);
            Tensor *nodes[] = {is_ours ? &ours.steps[0] : &op, &ours.steps[1]};
            if (cpu.compute(nodes, is_ours ? 2 : 1) != SUCCESS) return {};
        }
        return output;
    }

    std::vector<char> weights_;
    std::vector<float> input_, alone_;
    Tensor weight_;
};

Kernels try_kernels(int32_t type) {
    if (!ggml().get_type_traits_cpu(type)->vec_dot) return {false, nullptr};
    KernelTrial trial(type);
    const SharedDot shared = shared_dot(type);
    return {trial.is_exact(nullptr) && trial.depends_on_rows(),
            shared && trial.is_exact(shared) ? shared : nullptr};
}

}  // namespace

const Kernels &kernels_of(int32_t type) {
    static std::mutex mutex;
    static std::unordered_map<int32_t, Kernels> known;
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known.find(type);
    if (found == known.end()) found = known.emplace(type, try_kernels(type)).first;
    return found->second;
}

}  // namespace haversack
