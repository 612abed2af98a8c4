#include "router.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace haversack {

namespace {

constexpr size_t MOST_NODES = 40;      // between a router's product and its choice
constexpr int64_t SAMPLED_ROWS = 128;  // what two of so many choose, one of all the rows will

// The tensors that `ids` is made from, up to the router's product, which comes last. The second source
// of each is followed first: it leads over the choice of groups, where there are any.
std::vector<const Tensor *> ancestors(const Tensor *ids) {
    std::vector<const Tensor *> found, waiting{ids};
    while (!waiting.empty() && found.size() < MOST_NODES) {
        const Tensor *node = waiting.back();
        waiting.pop_back();
        found.push_back(node);
        if (node->op == ggml().op_mul_mat) return found;
        for (int i : {0, 1})
            if (node->src[i]) waiting.push_back(node->src[i]);
    }
    return {};
}

// By the name without the layer; of a node and its views, the node.
const Tensor *named(const std::vector<const Tensor *> &nodes, const char *name) {
    const Tensor *found = nullptr;
    const size_t length = std::strlen(name);
    for (const Tensor *node : nodes)
        if (std::strncmp(node->name, name, length) == 0 && node->name[length] == '-') found = node;
    return found;
}

const float *bias_of(const Tensor *sum) { return sum ? (const float *)sum->src[1]->data : nullptr; }

// A sum in lanes, so that the processor can add several at a time.
float dot(const float *a, const float *b, int32_t count) {
    constexpr int32_t LANES = 16;
    float sums[LANES] = {};
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int32_t lane = 0; lane < LANES; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++) sums[0] += a[i] * b[i];
    return std::accumulate(sums, sums + LANES, 0.0f);
}

bool is_choice_of(const std::vector<int32_t> &experts, const Tensor *ids) {
    if ((int64_t)experts.size() != ids->ne[0]) return false;
    for (int64_t i = 0; i < ids->ne[0]; i++) {
        const int32_t chosen = *(const int32_t *)((const char *)ids->data + i * ids->nb[0]);
        if (std::find(experts.begin(), experts.end(), chosen) == experts.end()) return false;
    }
    return true;
}

Router read_router(const Tensor *ids, const std::vector<const Tensor *> &nodes) {
    const Tensor *product = nodes.back(), *weight = product->src[0];
    Router router;
    if (weight->type != TYPE_F32 || weight->ne[2] != 1) return router;
    router.weight = (const float *)weight->data;
    router.num_inputs = weight->ne[0];
    router.num_experts = weight->ne[1];
    router.num_used = ids->ne[0];
    for (const Tensor *node : nodes)
        if (node->op == ggml().op_add && node->src[0] == product) router.score_bias = bias_of(node);
    router.choice_bias = bias_of(named(nodes, "ffn_moe_probs_biased"));
    const Tensor *probabilities = named(nodes, "ffn_moe_probs");
    router.sigmoid = probabilities && probabilities->op == ggml().op_unary;
    router.by_scores = !probabilities || probabilities->op == ggml().op_mul_mat ||
                       probabilities->op == ggml().op_add;
    if (const Tensor *groups = named(nodes, "ffn_moe_group_topk")) {
        router.num_groups = groups->src[0]->ne[0];
        router.groups_used = groups->ne[0];
    }
    return router;
}

}  // namespace

const Tensor *router_input(const Tensor *ids) {
    const auto nodes = ancestors(ids);
    return nodes.empty() || nodes.back()->src[1]->type != TYPE_F32 ? nullptr : nodes.back()->src[1];
}

const Tensor *router_probabilities(const Tensor *ids) { return named(ancestors(ids), "ffn_moe_probs"); }

const Tensor *router_weights(const Graph *graph, const Tensor *ids) {
    Tensor *const *end = ((const GraphHead *)graph)->nodes;
    for (size_t back = 1; back <= MOST_NODES && *(end - back) != ids; back++) {
        const Tensor *node = *(end - back);
        const bool is_whole = node->ne[0] * node->ne[1] * node->ne[2] == ids->ne[0] * ids->ne[1];
        if (is_whole && std::strncmp(node->name, "ffn_moe_weights", 15) == 0) return node;
    }
    return nullptr;
}

Router learn_router(const Tensor *ids) {
    const Tensor *input = router_input(ids);
    if (!input) return {};
    const Router router = read_router(ids, ancestors(ids));
    if (!router.is_known() || input->ne[0] != router.num_inputs) return {};
    return is_choice_of(router.choose((const float *)input->data), ids) ? router : Router{};
}

std::vector<int32_t> Router::choose(const float *input, int32_t extra) const {
    return best(scores(input), std::min(num_used + extra, num_experts));
}

std::vector<int32_t> Router::choose(const float *input, const std::vector<bool> &resident,
                                    Leaning leaning) const {
    std::vector<float> worth = scores(input);
    to_worth(worth, false);
    std::vector<int32_t> found = ranked(worth, num_experts);
    lean(found.data(), worth.data(), resident, num_used, leaning);
    found.resize(num_used);
    return found;
}

std::vector<float> Router::scores(const float *input) const {
    std::vector<float> found(num_experts);
    for (int32_t expert = 0; expert < num_experts; expert++) found[expert] = score(input, expert);
    return found;
}

float Router::score(const float *input, int32_t expert) const {
    return dot(weight + (int64_t)expert * num_inputs, input, num_inputs);
}

// The probabilities without the bias on the choice. Those of a softmax over all experts and of one over
// the chosen ones differ by a factor alone.
std::vector<float> Router::weights(const float *input, const std::vector<int32_t> &experts) const {
    std::vector<float> found;
    for (int32_t expert : experts)
        found.push_back(score(input, expert) + (score_bias ? score_bias[expert] : 0));
    to_probabilities(found);
    return found;
}

std::vector<int32_t> Router::popular(const Tensor *inputs, Cpu &cpu) const {
    const int64_t step = (inputs->ne[1] + SAMPLED_ROWS - 1) / SAMPLED_ROWS;
    const int64_t num_rows = (inputs->ne[1] + step - 1) / step;
    Tensor matrix = make_tensor(TYPE_F32, num_inputs, num_experts, 1, weight);
    Tensor rows = make_tensor(TYPE_F32, num_inputs, num_rows, 1, inputs->data);
    rows.nb[1] = step * inputs->nb[1];
    rows.nb[2] = rows.nb[3] = num_rows * rows.nb[1];
    std::vector<float> scores(num_rows * num_experts);
    Tensor product = make_tensor(TYPE_F32, num_experts, num_rows, 1, scores.data());
    product.op = ggml().op_mul_mat;
    product.src[0] = &matrix;
    product.src[1] = &rows;
    Tensor *node = &product;
    if (cpu.compute(&node, 1) != SUCCESS) return {};
    std::vector<int32_t> counts(num_experts), order(num_experts);
    for (int64_t row = 0; row < num_rows; row++) {
        const float *first = scores.data() + row * num_experts;
        for (int32_t expert : best({first, first + num_experts}, num_used)) counts[expert]++;
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
    while (!order.empty() && counts[order.back()] < 2) order.pop_back();
    return order;
}

// The `count` experts of the highest scores, given the bias, the probabilities and the groups.
std::vector<int32_t> Router::best(std::vector<float> scores, int32_t count) const {
    to_worth(scores, true);
    return ranked(scores, count);
}

// What it orders the experts by; with `only_order`, numbers of the same order, which take less time.
void Router::to_worth(std::vector<float> &scores, bool only_order) const {
    if (score_bias)
        for (int32_t expert = 0; expert < num_experts; expert++) scores[expert] += score_bias[expert];
    const bool is_plain = !choice_bias && num_groups == 1;
    if (!is_plain || !(by_scores || only_order)) to_probabilities(scores);
    if (choice_bias)
        for (int32_t expert = 0; expert < num_experts; expert++) scores[expert] += choice_bias[expert];
    if (num_groups > 1) keep_best_groups(scores);
}

std::vector<int32_t> Router::ranked(const std::vector<float> &worth, int32_t count) const {
    std::vector<int32_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0);
    const auto higher = [&](int32_t a, int32_t b) { return worth[a] > worth[b]; };
    std::partial_sort(order.begin(), order.begin() + count, order.end(), higher);
    order.resize(count);
    return order;
}

void Router::to_probabilities(std::vector<float> &scores) const {
    if (sigmoid) {
        for (float &score : scores) score = 1 / (1 + std::exp(-score));
        return;
    }
    const float most = *std::max_element(scores.begin(), scores.end());
    float sum = 0;
    for (float &score : scores) sum += score = std::exp(score - most);
    for (float &score : scores) score /= sum;
}

// A group is worth as much as its two best experts; experts outside of the best groups are not chosen.
void Router::keep_best_groups(std::vector<float> &worth) const {
    const int32_t size = num_experts / num_groups;
    std::vector<std::pair<float, int32_t>> groups;
    for (int32_t group = 0; group < num_groups; group++) {
        std::vector<float> members(worth.begin() + group * size, worth.begin() + (group + 1) * size);
        const size_t num_best = std::min<size_t>(2, members.size());
        std::partial_sort(members.begin(), members.begin() + num_best, members.end(),
                          std::greater<float>());
        groups.emplace_back(-std::accumulate(members.begin(), members.begin() + num_best, 0.0f), group);
    }
    std::sort(groups.begin(), groups.end());
    for (size_t i = groups_used; i < groups.size(); i++)
        std::fill_n(worth.begin() + groups[i].second * size, size,
                    -std::numeric_limits<float>::infinity());
}

}  // namespace haversack
