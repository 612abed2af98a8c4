// The part of ggml that the engine calls, in place of offload/native/ggml.cpp: a few operations on
// plain numbers, in code that the sanitizers see. Products add up in one order, however many there
// are.
#include "check.hpp"
#include "ggml.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace haversack {

struct Graph {
    std::vector<Tensor *> nodes;
};

namespace {

enum Op { NONE, MUL_MAT_ID, UNARY, CUSTOM, OTHER };

void bf16_from_float(const float *from, void *to, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        std::memcpy((char *)to + 2 * i, (const char *)(from + i) + 2, 2);
}

float number(int32_t type, const char *row, int64_t i) {
    float value = 0;
    if (type == TYPE_F32) std::memcpy(&value, row + 4 * i, 4);
    else std::memcpy((char *)&value + 2, row + 2 * i, 2);
    return value;
}

template <int32_t TYPE>
void dot(int count, float *sum, size_t, const void *weights, size_t, const void *inputs, size_t, int) {
    *sum = 0;
    for (int64_t j = 0; j < count; ++j)
        *sum += number(TYPE, (const char *)weights, j) * number(TYPE, (const char *)inputs, j);
}

const TypeTraits F32{nullptr, dot<TYPE_F32>, TYPE_F32, 1};
const TypeTraits BF16{bf16_from_float, dot<TYPE_BF16>, TYPE_BF16, 1};

void multiply(const Tensor &op) {
    const Tensor &weight = *op.src[0], &input = *op.src[1], &ids = *op.src[2];
    for (int64_t token = 0; token < ids.ne[1]; ++token) {
        for (int64_t place = 0; place < ids.ne[0]; ++place) {
            const auto expert = ((const int32_t *)ids.row(token))[place];
            CHECK(expert >= 0 && expert < weight.ne[2]);
            const char *row = input.row(place % input.ne[1], token);
            for (int64_t i = 0; i < weight.ne[1]; ++i) {
                float sum = 0;
                for (int64_t j = 0; j < weight.ne[0]; ++j)
                    sum += number(weight.type, weight.row(i, expert), j) * number(input.type, row, j);
                ((float *)op.row(place, token))[i] = sum;
            }
        }
    }
}

// Halves positive numbers, and makes others 0.
void halve(const Tensor &op) {
    for (int64_t i = 0; i < op.ne[0] * op.ne[1] * op.ne[2]; ++i) {
        const float value = ((const float *)op.src[0]->data)[i];
        ((float *)op.data)[i] = value > 0 ? value / 2 : 0;
    }
}

// Calls the function that the operation names, as a backend with one thread does.
void call(Tensor &op) {
    void (*function)(Tensor *, int, int, void *);
    void *data;
    std::memcpy(&function, op.op_params, sizeof function);
    std::memcpy(&data, (const char *)op.op_params + 16, sizeof data);
    function(&op, 0, 1, data);
}

Status compute(Backend *, Graph *graph) {
    for (Tensor *node : graph->nodes) {
        if (node->op == MUL_MAT_ID) multiply(*node);
        else if (node->op == UNARY) halve(*node);
        else if (node->op == CUSTOM) call(*node);
        else return COMPUTE_FAILED;
    }
    return SUCCESS;
}

// A device: memory of its own, and the same operations at once.
Buffer *make_buffer(BufferType *, size_t num_bytes) {
    auto *made = new Buffer{};
    made->context = std::aligned_alloc(64, (num_bytes + 63) / 64 * 64);
    made->num_bytes = num_bytes;
    return made;
}

void add_with_sources(Graph *graph, Tensor *node) {
    const auto known = std::find(graph->nodes.begin(), graph->nodes.end(), node);
    if (node->op == NONE || known != graph->nodes.end()) return;
    for (Tensor *source : node->src)
        if (source) add_with_sources(graph, source);
    graph->nodes.push_back(node);
}

Status place_tensor(Buffer *buffer, Tensor *tensor, void *address) {
    tensor->buffer = buffer;
    tensor->data = address;
    return SUCCESS;
}

void add_device(Ggml &g) {
    static Backend backend{};
    g.build_forward_expand = add_with_sources;
    g.backend_dev_init = [](Device *, const char *) { return &backend; };
    g.backend_dev_buffer_type = [](Device *) { return (BufferType *)nullptr; };
    g.backend_dev_host_buffer_type = [](Device *) { return (BufferType *)nullptr; };
    g.backend_buft_alloc_buffer = make_buffer;
    g.backend_buft_get_alignment = [](BufferType *) { return size_t(64); };
    g.backend_buft_get_max_size = [](BufferType *) { return size_t(1) << 40; };
    g.backend_buft_get_alloc_size = [](BufferType *, const Tensor *t) { return t->nb[2] * t->ne[2]; };
    g.backend_buffer_get_base = [](Buffer *buffer) { return buffer->context; };
    g.backend_buffer_clear = [](Buffer *buffer, uint8_t value) {
        std::memset(buffer->context, value, buffer->num_bytes);
    };
    g.backend_buffer_set_usage = [](Buffer *, int32_t) {};
    g.backend_buffer_free = [](Buffer *buffer) {
        std::free(buffer->context);
        delete buffer;
    };
    g.backend_tensor_alloc = place_tensor;
    g.backend_tensor_set = [](Tensor *tensor, const void *from, size_t offset, size_t num_bytes) {
        std::memcpy((char *)tensor->data + offset, from, num_bytes);
    };
    g.backend_tensor_get = [](const Tensor *tensor, void *to, size_t offset, size_t num_bytes) {
        std::memcpy(to, (const char *)tensor->data + offset, num_bytes);
    };
    g.backend_tensor_set_async = [](Backend *, Tensor *tensor, const void *from, size_t offset,
                                    size_t num_bytes) {
        std::memcpy((char *)tensor->data + offset, from, num_bytes);
    };
    g.backend_tensor_get_async = [](Backend *, const Tensor *tensor, void *to, size_t offset,
                                    size_t num_bytes) {
        std::memcpy(to, (const char *)tensor->data + offset, num_bytes);
    };
    g.backend_graph_compute_async = compute;
    g.backend_synchronize = [](Backend *) {};
}

Ggml fake() {
    Ggml g{};
    add_device(g);
    g.init = [](InitParams) { return (void *)new Graph; };
    g.free = [](void *context) { delete (Graph *)context; };
    g.new_graph_custom = [](void *context, size_t, bool) { return (Graph *)context; };
    g.graph_overhead_custom = [](size_t, bool) { return size_t(64); };
    g.graph_clear = [](Graph *graph) { graph->nodes.clear(); };
    g.graph_add_node = [](Graph *graph, Tensor *node) { graph->nodes.push_back(node); };
    g.type_size = [](int32_t type) { return size_t(type == TYPE_BF16 ? 2 : 4); };
    g.blck_size = [](int32_t) { return int64_t(1); };
    g.backend_graph_compute = compute;
    g.backend_free = [](Backend *) {};
    g.backend_cpu_init = [] { return (Backend *)nullptr; };
    g.backend_cpu_set_n_threads = [](Backend *, int) {};
    g.get_type_traits_cpu = [](int32_t type) { return type == TYPE_F32 ? &F32 : &BF16; };
    for (int32_t *op : {&g.op_mul_mat, &g.op_glu, &g.op_add_id, &g.op_sqr, &g.op_scale, &g.op_clamp,
                        &g.op_mul, &g.op_add, &g.op_view, &g.op_reshape, &g.op_flash_attn_ext})
        *op = OTHER;
    g.op_mul_mat_id = MUL_MAT_ID, g.op_unary = UNARY, g.op_custom = CUSTOM;
    return g;
}

}  // namespace

const Ggml &ggml() {
    static const Ggml functions = fake();
    return functions;
}

}  // namespace haversack
