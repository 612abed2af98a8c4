#include "host_graph.hpp"

#include <algorithm>
#include <cstring>

namespace haversack {

void HostGraph::make(const ExpertsGraph &form, const std::vector<Tensor *> &nodes,
                     const Choice &choice, const std::vector<int32_t> &pairs,
                     const std::vector<int32_t> &slots, const Layer &layer) {
    const auto [low, high] = std::minmax_element(slots.begin(), slots.end());
    const int32_t first = slots.empty() ? 0 : *low, num_slots = slots.empty() ? 1 : *high - *low + 1;
    slots_.clear();
    for (int32_t slot : slots) slots_.push_back(slot - first);
    ids_ = make_tensor(TYPE_I32, slots.size(), 1, 1, slots_.data());
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        const Matrix &matrix = layer.matrices[HIGH][m];
        weights_[m] = make_tensor(matrix.type, matrix.num_inputs, matrix.num_rows, num_slots,
                                  matrix.in_slot(first), matrix.stride);
    }
    gather(form, choice, pairs);
    nodes_.clear();
    steps_.resize(form.steps.size());
    for (Tensor *node : nodes) {
        const int32_t step = form.place_of(node);
        if (step >= 0) place(form, step, node, pairs.size());
        if (step >= 0 && pairs.empty()) continue;
        nodes_.push_back(step >= 0 ? &steps_[step] : node);
    }
}

void HostGraph::gather(const ExpertsGraph &form, const Choice &choice,
                       const std::vector<int32_t> &pairs) {
    inputs_.resize(form.inputs.size());
    rows_.resize(form.inputs.size());
    for (size_t i = 0; i < form.inputs.size(); i++) {
        const ExpertsGraph::Input &input = form.inputs[i];
        const size_t num_rows = input.is_of_token ? 1 : pairs.size();
        rows_[i].resize(num_rows * input.length);
        for (size_t row = 0; row < num_rows && !pairs.empty(); row++)
            std::memcpy(&rows_[i][row * input.length], input.row(choice, pairs[row]),
                        input.length * sizeof(float));
        inputs_[i] = make_tensor(TYPE_F32, input.length, num_rows, 1, rows_[i].data());
    }
}

void HostGraph::place(const ExpertsGraph &form, int32_t number, Tensor *node, int64_t num_pairs) {
    const ExpertsGraph::Step &step = form.steps[number];
    Tensor &made = steps_[number] = ExpertsGraph::tensor_of(step, num_pairs, 1);
    made.data = node->data;
    for (int i = 0; i < 3; i++) {
        const auto [kind, index] = step.sources[i];
        if (kind == ExpertsGraph::STEP) made.src[i] = &steps_[index];
        if (kind == ExpertsGraph::INPUT) made.src[i] = &inputs_[index];
        if (kind == ExpertsGraph::MATRIX) made.src[i] = &weights_[index];
        if (kind == ExpertsGraph::IDS) made.src[i] = &ids_;
    }
    if (!step.is_view()) return;
    for (int axis = 1; axis < 4; axis++) made.nb[axis] = made.src[0]->nb[axis];
    made.data = (char *)made.src[0]->data + step.offset_bytes;
}

// From the last one on, because no row moves to a place before its own.
void HostGraph::spread(const ExpertsGraph &form, const std::vector<int32_t> &pairs) const {
    for (size_t i = pairs.size(); i-- > 0;) {
        char *to = form.result->row(pairs[i]), *from = form.result->row(i);
        if (to != from) std::memcpy(to, from, form.result->ne[0] * sizeof(float));
    }
}

}  // namespace haversack
