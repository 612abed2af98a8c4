#include "device.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "guard.hpp"
#include "rows.hpp"
#include "system.hpp"

namespace haversack {

namespace {

constexpr char NAME[] = "Experts";
constexpr size_t ALIGNMENT_BYTES = 64;
constexpr int MOST_STEPS = 12;  // from an operation between two products back to the first
constexpr char ORDER[] = "ffn_moe_argsort-";  // of a layer's experts by what its router chooses by

// ------------------------------------------------------------------ interface
const char *backend_name(Backend *) { return NAME; }
void free_backend(Backend *backend) { delete backend; }

Status compute(Backend *backend, Graph *graph) {
    try {
        return ((ContextDevice *)backend->context)->compute(graph);
    } catch (const std::bad_alloc &) {  // no exception may cross llama.cpp's frames
        return ALLOC_FAILED;
    }
}

const char *device_name(Device *) { return NAME; }
void memory(Device *, size_t *free, size_t *total) { *free = *total = 0; }

// llama.cpp adds every accelerator to every context that is made in the process, but of several
// devices of the type CPU it takes the first, which is its own. So only our contexts get this one.
int32_t device_type(Device *) { return call_owner ? DEVICE_TYPE_ACCEL : DEVICE_TYPE_CPU; }

void properties(Device *device, DeviceProperties *wanted) {
    *wanted = {};
    wanted->name = wanted->description = NAME;
    wanted->type = device_type(device);
}

Backend *make_backend(Device *device, const char *) {
    static const uint8_t guid[16] = {'h', 'a', 'v', 'e', 'r', 's', 'a', 'c', 'k', 1};
    auto *backend = new Backend{};
    backend->guid = guid;
    backend->get_name = backend_name;
    backend->free = free_backend;
    backend->graph_compute = compute;
    backend->device = device;
    backend->context = call_owner;
    return backend;
}

// Weights are never placed in a buffer of this type, as it is the CPU's.
BufferType *buffer_type(Device *) { return ggml().backend_cpu_buffer_type(); }

// The device is one for the process; llama.cpp asks it on the thread that makes or computes a context.
bool supports_op(Device *, const Tensor *op) {
    return call_owner && ((ContextDevice *)call_owner)->claims(op);
}

bool supports_buffer(Device *, BufferType *type) { return ggml().backend_buft_is_host(type); }

const char *registry_name(Registry *) { return NAME; }
size_t device_count(Registry *) { return 1; }
Device *get_device(Registry *, size_t);
void *get_proc_address(Registry *, const char *) { return nullptr; }

// Its first field, the version of ggml's interface, is known when a build is loaded.
Registry registry = {0, registry_name, device_count, get_device, get_proc_address, nullptr};
Device device = {device_name, device_name, memory, device_type, properties, make_backend,
                 buffer_type, {}, supports_op, supports_buffer, nullptr, nullptr, nullptr, nullptr,
                 &registry, nullptr};

Device *get_device(Registry *, size_t) { return &device; }

}  // namespace

const char *register_device(const Build &build) {
    static const std::string wrong = [&build] {
        std::string found = load_ggml(build);
        registry.api_version = ggml().api_version;
        if (found.empty()) ggml().backend_register(&registry);
        return found;
    }();
    return wrong.c_str();
}

// ---------------------------------------------------------------- one context
namespace {

void *get_base(Buffer *buffer) { return buffer->context; }

// Whether this is a weight in an expert buffer: it has no memory, so llama.cpp cannot compute with it.
bool is_kept_out(const Tensor *weight) {
    return weight && weight->buffer && weight->buffer->iface.get_base == get_base;
}

}  // namespace

void ContextDevice::add_weight(const Tensor *weight, int layer, int index, bool is_last) {
    weights_[weight] = {layer, index, is_last};
}

const ContextDevice::Weight *ContextDevice::weight_of(const Tensor *product) const {
    auto found = weights_.find(product->src[0]);
    return found == weights_.end() ? nullptr : &found->second;
}

// The experts' product that `op` was made from, if no other kind of product lies between.
const ContextDevice::Weight *ContextDevice::nearest_product(const Tensor *op) const {
    for (int step = 0; op && step < MOST_STEPS; step++) {
        if (op->op == ggml().op_mul_mat_id) return weight_of(op);
        bool is_view = op->op == ggml().op_view || op->op == ggml().op_reshape;
        if (!is_view && !claims_between(op)) return nullptr;
        op = op->src[0];
    }
    return nullptr;
}

// Whether an operation of this kind may stand between the products of a layer.
bool ContextDevice::claims_between(const Tensor *op) const {
    const Ggml &g = ggml();
    for (int32_t kind : {g.op_glu, g.op_add_id, g.op_unary, g.op_sqr, g.op_scale, g.op_clamp,
                         g.op_mul, g.op_add})
        if (op->op == kind) return true;
    return false;
}

// The layer whose router has put its experts in this order, if the choice may lean; else NOWHERE.
int32_t ContextDevice::leaning_layer(const Tensor *op) const {
    if (op->op != ggml().op_argsort || !engine_ || !engine_->leans()) return NOWHERE;
    const bool is_named = std::strncmp(op->name, ORDER, sizeof ORDER - 1) == 0;
    if (!is_named || op->src[0]->type != TYPE_F32) return NOWHERE;
    return engine_->leaning_layer(std::atoi(op->name + sizeof ORDER - 1), op->ne[0]);
}

bool ContextDevice::claims(const Tensor *op) const {
    if (is_kept_out(op->src[0])) return true;
    if (takes_rows(op)) return true;
    if (leaning_layer(op) != NOWHERE) {
        can_lean_ = true;  // llama.cpp plans a graph of many rows first, and maybe no other
        return op->ne[1] <= MOST_EXACT_ROWS;
    }
    if (op->op == ggml().op_mul_mat_id) return false;
    if (weights_.empty() || !claims_between(op)) return false;
    const Weight *product = nearest_product(op->src[0]);
    return product && (!product->is_last || op->op == ggml().op_add_id);
}

// llama.cpp's scheduler hands over a run of claimed operations: a layer's experts, or operations that
// depend on the number of rows, or both, or a router's order of experts. An operation with a weight that
// is kept out and that nobody has told the device of ends the pass.
Status ContextDevice::compute(Graph *graph) {
    begin_run();
    for (int i = 0; i < ggml().graph_n_nodes(graph); i++) {
        Tensor *node = ggml().graph_node(graph, i);
        const Weight *weight = node->op == ggml().op_mul_mat_id ? weight_of(node) : nullptr;
        if (!weight && is_kept_out(node->src[0])) {
            engine_->state.failure = PRODUCTS_MISSING;
            return COMPUTE_FAILED;
        }
        nodes_.push_back(node);
        if (weight) {
            layer_ = weight->layer;
            products_.push_back({nodes_.size() - 1, weight->index});
        }
        const int32_t leaning = leaning_layer(node);
        if (leaning == NOWHERE) continue;
        if (Status status = compute_run(graph)) return status;
        engine_->lean(leaning, node);
        begin_run();
    }
    return compute_run(graph);
}

void ContextDevice::begin_run() {
    nodes_.clear();
    products_.clear();
}

// Compute the nodes that were collected.
Status ContextDevice::compute_run(Graph *graph) {
    if (products_.empty()) return compute_nodes(nodes_.data(), nodes_.size(), cpu_);
    const Tensor *ids = nodes_[products_[0].at]->src[2];
    const Tensor *weights = engine_->wants_weights() ? router_weights(graph, ids) : nullptr;
    return engine_->compute(layer_, nodes_, products_, cpu_, weights);
}

// --------------------------------------------------------------- expert buffer
namespace {

void free_nothing(Buffer *) {}
void set_nothing(Buffer *, Tensor *, const void *, size_t, size_t) {}

}  // namespace

ExpertBuffer::ExpertBuffer() {
    type_.fill([this](auto &made) {
        made.get_name = [](BufferType *) -> const char * { return NAME; };
        made.alloc_buffer = allocate;
        made.get_alignment = [](BufferType *) { return ALIGNMENT_BYTES; };
        made.is_host = [](BufferType *type) { return !of(type)->loading; };
        made.context = this;
    });
}

ExpertBuffer::~ExpertBuffer() {
    for (auto &[address, num_bytes] : spaces_) release_addresses(address, num_bytes);
}

Buffer *ExpertBuffer::allocate(BufferType *type, size_t num_bytes) {
    ExpertBuffer *self = of(type);
    void *address = reserve_addresses(num_bytes);
    if (!address) {
        self->failed = true;
        return nullptr;
    }
    self->spaces_.emplace_back(address, num_bytes);
    BufferInterface iface{};
    iface.free_buffer = free_nothing, iface.get_base = get_base;
    iface.init_tensor = keep, iface.set_tensor = set_nothing;
    return ggml().backend_buffer_init(type, iface, address, num_bytes);
}

// The tensor's rows lie on top of each other: it has no bytes, or one element.
Status ExpertBuffer::keep(Buffer *buffer, Tensor *tensor) {
    std::memset(tensor->nb, 0, sizeof tensor->nb);
    of(buffer->type)->weights.push_back(tensor);
    return SUCCESS;
}

}  // namespace haversack
