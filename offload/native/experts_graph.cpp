#include "experts_graph.hpp"

#include <algorithm>
#include <cstring>

namespace haversack {

namespace {

constexpr int32_t NO_STEP = -1;

bool is_view_op(int32_t op) { return op == ggml().op_view || op == ggml().op_reshape; }

bool are_rows(const Tensor *tensor) {
    return tensor->type == TYPE_F32 && tensor->nb[0] == sizeof(float) && tensor->ne[3] == 1;
}

bool are_rows_of_pairs(const Tensor *node, const Choice &choice) {
    return are_rows(node) && node->ne[1] == choice.num_used && node->ne[2] == choice.num_rows;
}

size_t offset_bytes(const Tensor *view) {
    return (const char *)view->data - (const char *)view->src[0]->data;
}

// Whether it has a part of each pair's row.
bool is_view_of_rows(const Tensor *view, const Choice &choice) {
    const Tensor *source = view->src[0];
    return are_rows_of_pairs(view, choice) && view->nb[1] == source->nb[1] &&
           view->nb[2] == source->nb[2] &&
           offset_bytes(view) + view->ne[0] * sizeof(float) <= source->nb[1];
}

}  // namespace

bool ExpertsGraph::Step::is_view() const { return is_view_op(op); }

bool ExpertsGraph::Step::operator==(const Step &other) const {
    return op == other.op && std::equal(op_params, op_params + 16, other.op_params) &&
           length == other.length && offset_bytes == other.offset_bytes &&
           std::equal(sources, sources + 3, other.sources);
}

const char *ExpertsGraph::Input::row(const Choice &choice, int32_t pair) const {
    if (is_of_expert) return tensor->row(choice.of_pairs[pair]);
    const int64_t place = pair % choice.num_used, token = pair / choice.num_used;
    return tensor->row(place % tensor->ne[1], token % tensor->ne[2]);
}

bool ExpertsGraph::read(const std::vector<Tensor *> &nodes, const std::vector<Product> &products,
                        const Choice &choice) {
    steps.clear();
    inputs.clear();
    nodes_.clear();
    others_.clear();
    ids_ = nodes[products[0].at]->src[2];
    auto product = products.begin();
    for (size_t at = products[0].at; at < nodes.size(); at++) {
        const Tensor *node = nodes[at];
        const bool is_product = product != products.end() && product->at == at;
        const bool is_experts = std::any_of(node->src, node->src + 10, [&](const Tensor *source) {
            return source && place_of(source) >= 0;
        });
        if (!is_product && !is_experts) continue;
        if (is_view_op(node->op) && !is_view_of_rows(node, choice)) {
            others_.push_back(node->src[0]);
            continue;
        }
        if (!add(node, is_product ? product->index : -1, choice)) return false;
        if (is_product) ++product;
    }
    for (const Input &input : inputs)  // they have to be there when the first step begins
        for (size_t at = products[0].at; at < nodes.size(); at++)
            if (input.tensor == nodes[at] || input.tensor->view_src == nodes[at]) return false;
    return has_one_result(nodes);
}

bool ExpertsGraph::has_one_result(const std::vector<Tensor *> &nodes) {
    for (; steps.back().is_view(); steps.pop_back(), nodes_.pop_back())
        others_.push_back(nodes_.back()->src[0]);
    std::vector<bool> is_used(steps.size());
    for (const Step &step : steps)
        for (const Source &source : step.sources)
            if (source.kind == STEP) is_used[source.index] = true;
    if (std::count(is_used.begin(), is_used.end(), false) != 1 || is_used.back()) return false;
    const auto shows_result = [&](const Tensor *node) { return place_of(node) + 1 == (int)steps.size(); };
    if (!std::all_of(others_.begin(), others_.end(), shows_result)) return false;
    result = *std::find(nodes.begin(), nodes.end(), nodes_.back());
    return true;
}

int32_t ExpertsGraph::place_of(const Tensor *node) const {
    const auto found = std::find(nodes_.begin(), nodes_.end(), node);
    return found == nodes_.end() ? NO_STEP : static_cast<int32_t>(found - nodes_.begin());
}

bool ExpertsGraph::add(const Tensor *node, int32_t matrix, const Choice &choice) {
    if (!are_rows_of_pairs(node, choice)) return false;
    for (int i = 3; i < 10; i++)
        if (node->src[i]) return false;
    Step step{node->op, {}, node->ne[0], 0, {}};
    std::copy_n(node->op_params, 16, step.op_params);
    if (matrix >= 0) step.sources[0] = {MATRIX, matrix};
    for (int i = matrix >= 0 ? 1 : 0; i < 3; i++)
        if (node->src[i] && !add_source(step, i, node->src[i], choice)) return false;
    if (step.op == ggml().op_add_id) step.op = ggml().op_add;  // with the rows of its experts
    if (step.is_view()) {
        std::fill_n(step.op_params, 16, 0);
        step.op = ggml().op_view;
        step.offset_bytes = offset_bytes(node);
    }
    steps.push_back(step);
    nodes_.push_back(node);
    return true;
}

bool ExpertsGraph::add_source(Step &step, int index, const Tensor *source, const Choice &choice) {
    const bool is_bias = step.op == ggml().op_add_id && index == 1;
    if (source == ids_) {
        if (step.op != ggml().op_add_id) step.sources[index] = {IDS, 0};
        return step.op == ggml().op_add_id || step.op == ggml().op_mul_mat_id;
    }
    const int32_t place = place_of(source);
    if (place >= 0) {
        step.sources[index] = {STEP, place};
        return true;
    }
    const bool is_of_pairs = (source->ne[1] == 1 || source->ne[1] == choice.num_used) &&
                             (source->ne[2] == 1 || source->ne[2] == choice.num_rows);
    if (index == 2 || !are_rows(source) || (!is_bias && !is_of_pairs)) return false;
    const auto known = std::find_if(inputs.begin(), inputs.end(), [&](const Input &input) {
        return input.tensor == source && input.is_of_expert == is_bias;
    });
    step.sources[index] = {INPUT, static_cast<int32_t>(known - inputs.begin())};
    if (known == inputs.end())
        inputs.push_back({source, source->ne[0], !is_bias && source->ne[1] == 1, is_bias});
    return true;
}

void ExpertsGraph::keep_inputs(KeptInputs &kept) {
    kept.rows.resize(std::max(kept.rows.size(), inputs.size()));
    kept.tensors.resize(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++) {
        Input &input = inputs[i];
        if (input.is_of_expert) continue;  // a weight
        const Tensor &from = *input.tensor;
        kept.rows[i].resize(input.length * from.ne[1] * from.ne[2]);
        kept.tensors[i] = make_tensor(TYPE_F32, input.length, from.ne[1], from.ne[2], kept.rows[i].data());
        for (int64_t row = 0; row < from.ne[1] * from.ne[2]; row++)
            std::memcpy(&kept.rows[i][row * input.length], from.row(row % from.ne[1], row / from.ne[1]),
                        input.length * sizeof(float));
        input.tensor = &kept.tensors[i];
    }
}

bool ExpertsGraph::is_like(const ExpertsGraph &other) const {
    return steps == other.steps &&
           std::equal(inputs.begin(), inputs.end(), other.inputs.begin(), other.inputs.end(),
                      [](const Input &one, const Input &two) {
                          return one.length == two.length && one.is_of_token == two.is_of_token;
                      });
}

Tensor ExpertsGraph::tensor_of(const Step &step, int64_t num_used, int64_t num_rows) {
    Tensor made = make_tensor(TYPE_F32, step.length, num_used, num_rows, nullptr);
    made.op = step.op;
    std::copy_n(step.op_params, 16, made.op_params);
    return made;
}

bool ExpertsGraph::uses(int32_t matrix) const {
    return std::any_of(steps.begin(), steps.end(), [&](const Step &step) {
        return step.sources[0] == Source{MATRIX, matrix};
    });
}

int64_t ExpertsGraph::matrix_bytes(const Layer &layer) const {
    int64_t sum = 0;
    for (int32_t m = 0; m < layer.num_matrices; m++)
        if (uses(m)) sum += layer.matrices[HIGH][m].num_bytes;
    return sum;
}

int64_t ExpertsGraph::pair_bytes() const {
    int64_t num_numbers = 1;  // an id
    for (const Step &step : steps) num_numbers += step.is_view() ? 0 : step.length;
    for (const Input &input : inputs) num_numbers += input.length;
    return num_numbers * (int64_t)sizeof(float);
}

}  // namespace haversack
