#include "cpu.hpp"

#include "clock.hpp"

namespace haversack {

Cpu::Cpu(int num_threads, size_t most_nodes) : backend_(ggml().backend_cpu_init()) {
    ggml().backend_cpu_set_n_threads(backend_, num_threads);
    size_t num_bytes = ggml().graph_overhead_custom(most_nodes, false) + 4096;
    memory_.reset(new char[num_bytes]);
    context_ = ggml().init({num_bytes, memory_.get(), true});
    graph_ = ggml().new_graph_custom(context_, most_nodes, false);
}

Cpu::~Cpu() {
    ggml().free(context_);
    ggml().backend_free(backend_);
}

Status Cpu::compute(Tensor *const *nodes, size_t count) {
    if (count == 0) return SUCCESS;
    Stopwatch watch(computed_s);
    ggml().graph_clear(graph_);
    for (size_t i = 0; i < count; i++) ggml().graph_add_node(graph_, nodes[i]);
    return ggml().backend_graph_compute(backend_, graph_);
}

Tensor make_tensor(int32_t type, int64_t ne0, int64_t ne1, int64_t ne2, const void *data,
                   size_t stride) {
    Tensor made{};
    made.type = type;
    made.flags = FLAG_COMPUTE;
    made.data = const_cast<void *>(data);
    const int64_t ne[4] = {ne0, ne1, ne2, 1};
    for (int axis = 0; axis < 4; axis++) made.ne[axis] = ne[axis];
    made.nb[0] = ggml().type_size(type);
    made.nb[1] = ggml().row_bytes(type, ne0);
    made.nb[2] = stride ? stride : made.nb[1] * ne1;
    made.nb[3] = made.nb[2] * ne2;
    return made;
}

}  // namespace haversack
