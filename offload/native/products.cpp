#include "products.hpp"

#include <algorithm>
#include <cstring>

namespace haversack {

void Choice::read(const Tensor *ids, int32_t num_experts) {
    num_rows = ids->ne[1];
    num_used = ids->ne[0];
    of_pairs.resize(num_rows * num_used);
    pairs.resize(of_pairs.size());
    experts.clear();
    starts.assign(1, 0);
    counts_.assign(num_experts, 0);
    next_.resize(num_experts);
    for (int64_t row = 0, pair = 0; row < num_rows; row++) {
        for (int64_t place = 0; place < num_used; place++, pair++) {
            const int32_t expert = *(const int32_t *)(ids->row(row) + place * ids->nb[0]);
            of_pairs[pair] = expert;
            if (counts_[expert]++ == 0) experts.push_back(expert);
        }
    }
    if (num_rows > 1) std::sort(experts.begin(), experts.end());
    for (int32_t expert : experts) {
        next_[expert] = starts.back();
        starts.push_back(starts.back() + counts_[expert]);
    }
    for (size_t pair = 0; pair < of_pairs.size(); pair++) pairs[next_[of_pairs[pair]]++] = pair;
}

ExpertProducts::ExpertProducts(int64_t most_rows)
    : most_rows_(most_rows), first_expert_(most_rows), tensors_(4 * MOST_PRODUCTS) {}

void ExpertProducts::begin(const Tensor *node, const Matrix &matrix, const Choice &choice) {
    node_ = node;
    matrix_ = &matrix;
    choice_ = &choice;
    const int32_t row_type = ggml().get_type_traits_cpu(matrix.type)->vec_dot_type;
    if (node->src[1] == converted_from_ && row_type == row_type_) return;
    row_type_ = row_type;
    convert();
    converted_from_ = node->src[1];
}

void ExpertProducts::convert() {
    const Tensor *rows = node_->src[1];
    row_bytes_ = ggml().row_bytes(row_type_, rows->ne[0]);
    converted_.resize(rows->ne[1] * rows->ne[2] * row_bytes_);
    const auto from_float = ggml().get_type_traits_cpu(row_type_)->from_float;
    for (int64_t row = 0; row < rows->ne[1] * rows->ne[2]; row++) {
        const auto *from = (const float *)rows->row(row % rows->ne[1], row / rows->ne[1]);
        uint8_t *to = converted_.data() + row * row_bytes_;
        if (row_type_ == TYPE_F32) std::memcpy(to, from, row_bytes_);
        else from_float(from, to, rows->ne[0]);
    }
}

// A pass may bring one row for all experts of a token, or one for each.
const uint8_t *ExpertProducts::row_of(int32_t pair) const {
    const int64_t per_token = node_->src[1]->ne[1];
    const int64_t token = pair / choice_->num_used, place = pair % choice_->num_used;
    return converted_.data() + (token * per_token + place % per_token) * row_bytes_;
}

float *ExpertProducts::out_of(int32_t pair) const {
    return (float *)node_->row(pair % choice_->num_used, pair / choice_->num_used);
}

Status ExpertProducts::run(const std::vector<int32_t> &positions, const std::vector<int32_t> &slots,
                           Cpu &cpu) {
    for (size_t i = 0; i < positions.size(); i++) {
        const int32_t count = choice_->count(positions[i]);
        const bool is_full = num_gathered_ > 0 && num_gathered_ + count > most_rows_;
        if (is_full || graph_.size() == MOST_PRODUCTS)
            if (Status status = flush(cpu)) return status;
        add(positions[i], slots[i]);
    }
    return flush(cpu);
}

// An expert's only row is read and its result written where they lie; several rows are gathered, so
// that they come in one product.
void ExpertProducts::add(int32_t position, int32_t slot) {
    const int32_t *pairs = &choice_->pairs[choice_->starts[position]];
    const int32_t count = choice_->count(position);
    const uint8_t *rows = row_of(pairs[0]);
    float *out = out_of(pairs[0]);
    if (count > 1) {
        gathered_.resize(std::max<size_t>(gathered_.size(), most_rows_ * row_bytes_));
        out_.resize(std::max<size_t>(out_.size(), most_rows_ * matrix_->num_rows));
        uint8_t *to = gathered_.data() + num_gathered_ * row_bytes_;
        rows = to;
        out = out_.data() + num_gathered_ * matrix_->num_rows;
        for (int32_t i = 0; i < count; i++)
            std::memcpy(to + i * row_bytes_, row_of(pairs[i]), row_bytes_);
        scattered_.push_back({position, out});
        num_gathered_ += count;
    }
    Tensor *made = &tensors_[4 * graph_.size()];
    made[0] = make_tensor(matrix_->type, matrix_->num_inputs, matrix_->num_rows, 1,
                          matrix_->in_slot(slot));
    made[1] = make_tensor(row_type_, matrix_->num_inputs, 1, count, rows);
    made[2] = make_tensor(TYPE_I32, 1, count, 1, first_expert_.data());
    made[3] = make_tensor(TYPE_F32, matrix_->num_rows, 1, count, out);
    made[3].op = ggml().op_mul_mat_id;
    for (int i = 0; i < 3; i++) made[3].src[i] = &made[i];
    graph_.push_back(&made[3]);
}

Status ExpertProducts::flush(Cpu &cpu) {
    const Status status = cpu.compute(graph_.data(), graph_.size());
    for (const Scattered &one : scattered_)
        for (int32_t i = 0; i < choice_->count(one.position); i++)
            std::memcpy(out_of(choice_->pairs[choice_->starts[one.position] + i]),
                        one.out + i * matrix_->num_rows, matrix_->num_rows * sizeof(float));
    graph_.clear();
    scattered_.clear();
    num_gathered_ = 0;
    return status;
}

}  // namespace haversack
