#include "graph_copy.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace haversack {

namespace {

int64_t bytes_of(const Tensor *tensor) { return (int64_t)tensor->nb[3] * tensor->ne[3]; }

// Of the matrices of all experts, those that rows chose, each once.
int64_t bytes_of_chosen(const Tensor &product) {
    const Tensor *matrices = product.src[0], *ids = product.src[2];
    return std::min(ids->ne[0] * ids->ne[1], matrices->ne[2]) * (int64_t)matrices->nb[2];
}

}  // namespace

GraphCopy::GraphCopy(Graph *graph) {
    for (int i = 0; i < ggml().graph_n_nodes(graph); i++)
        nodes_.push_back(copy(ggml().graph_node(graph, i)));
    const size_t num_nodes = tensors_.size();
    for (Tensor *node : nodes_)
        for (Tensor *&source : node->src)
            if (source) source = copy(source);
    for (size_t i = num_nodes; i < tensors_.size(); i++)  // what they were made from may be gone
        std::fill(std::begin(tensors_[i].src), std::end(tensors_[i].src), nullptr);
}

Tensor *GraphCopy::copy(const Tensor *tensor) {
    Tensor *&found = copies_[tensor];
    if (!found) found = &tensors_.emplace_back(*tensor);
    return found;
}

int64_t GraphCopy::bytes_read() const {
    const Ggml &g = ggml();
    int64_t num_bytes = 0;
    for (const Tensor *node : nodes_) {
        if (node->op == g.op_mul_mat_id) num_bytes += bytes_of_chosen(*node);
        if (node->op == g.op_mul_mat) num_bytes += bytes_of(node->src[0]);
        if (node->op == g.op_flash_attn_ext) num_bytes += bytes_of(node->src[1]) + bytes_of(node->src[2]);
    }
    return num_bytes;
}

void GraphCopy::clear() const {
    for (const Tensor *node : nodes_)
        if (!node->view_src) std::memset(node->data, 0, bytes_of(node));
}

}  // namespace haversack
