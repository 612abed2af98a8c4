// What haversack uses of ggml: the structures of its backend interface, which no package of a build
// of llama.cpp brings headers of, and its functions, found in the libraries of the chosen build. The
// layouts are those of the known interface versions; `load_ggml` refuses another one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace haversack {

// struct ggml_tensor
struct Tensor {
    int32_t type;
    struct Buffer *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];

    char *row(int64_t i1, int64_t i2 = 0) const { return (char *)data + i1 * nb[1] + i2 * nb[2]; }
};
static_assert(sizeof(Tensor) == 336, "another layout than llama.cpp's");

constexpr int32_t TYPE_F32 = 0, TYPE_F16 = 1, TYPE_I32 = 26, TYPE_BF16 = 30;  // enum ggml_type
constexpr int32_t FLAG_COMPUTE = 16;  // a graph skips nodes without it
enum Status : int32_t { ALLOC_FAILED = -2, COMPUTE_FAILED = -1, SUCCESS = 0, ABORTED = 1 };
constexpr int32_t USAGE_WEIGHTS = 1;          // enum ggml_backend_buffer_usage
constexpr int DEVICE_TYPE_CPU = 0, DEVICE_TYPE_GPU = 1, DEVICE_TYPE_ACCEL = 3;  // enum ggml_backend_dev_type

struct Graph;  // struct ggml_cgraph
// How a graph begins. A backend's graph is a part of the context's: the nodes that were computed before
// stand in front of its own.
struct GraphHead {
    int32_t num_rooms, num_nodes, num_leafs;
    Tensor **nodes;
};

struct Device;
struct Backend;
struct Registry;

// struct ggml_backend_buffer_type, which ggml reads and haversack only makes: its layout depends on the
// version of the interface. `alloc_buffer_n` and `get_alloc_size_n` may be null.
struct BufferType;
struct BufferType2 {
    const char *(*get_name)(BufferType *);
    Buffer *(*alloc_buffer)(BufferType *, size_t num_bytes);
    size_t (*get_alignment)(BufferType *);
    size_t (*get_max_size)(BufferType *);
    size_t (*get_alloc_size)(BufferType *, const Tensor *);
    bool (*is_host)(BufferType *);
    Device *device;
    void *context;
};
struct BufferType3 {
    const char *(*get_name)(BufferType *);
    Buffer *(*alloc_buffer)(BufferType *, size_t num_bytes);
    void *alloc_buffer_n;
    size_t (*get_alignment)(BufferType *);
    size_t (*get_max_size)(BufferType *);
    size_t (*get_alloc_size)(BufferType *, const Tensor *);
    void *get_alloc_size_n;
    bool (*is_host)(BufferType *);
    Device *device;
    void *context;
};

// struct ggml_backend_buffer_i
struct BufferInterface {
    void (*free_buffer)(Buffer *);
    void *(*get_base)(Buffer *);
    Status (*init_tensor)(Buffer *, Tensor *);
    void (*memset_tensor)(Buffer *, Tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(Buffer *, Tensor *, const void *, size_t, size_t);
    void (*get_tensor)(Buffer *, const Tensor *, void *, size_t, size_t);
    void *transfers_2d[2];
    void *cpy_tensor;
    void (*clear)(Buffer *, uint8_t);
    void *reset;
};

// struct ggml_backend_buffer
struct Buffer {
    BufferInterface iface;
    BufferType *type;
    void *context;
    size_t num_bytes;
    int32_t usage;
};

// struct ggml_backend_event
struct Event {
    Device *device;
    void *context;
};

// struct ggml_backend
struct Backend {
    const void *guid;
    const char *(*get_name)(Backend *);
    void (*free)(Backend *);
    void (*set_tensor_async)(Backend *, Tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(Backend *, const Tensor *, void *, size_t, size_t);
    void *transfers_2d[2];
    bool (*cpy_tensor_async)(Backend *from, Backend *to, const Tensor *, Tensor *);
    void (*synchronize)(Backend *);
    void *plans[4];
    Status (*graph_compute)(Backend *, Graph *);
    void (*event_record)(Backend *, Event *);
    void (*event_wait)(Backend *, Event *);
    void *graph_optimize;
    Device *device;
    void *context;
};

// struct ggml_backend_dev_props
struct DeviceProperties {
    const char *name, *description;
    size_t memory_free, memory_total;
    int32_t type;
    const char *device_id;
    bool is_async, has_host_buffer, takes_host_memory, has_events, is_mapped;
};

// struct ggml_backend_device
struct Device {
    const char *(*get_name)(Device *);
    const char *(*get_description)(Device *);
    void (*get_memory)(Device *, size_t *free, size_t *total);
    int32_t (*get_type)(Device *);
    void (*get_props)(Device *, DeviceProperties *);
    Backend *(*init_backend)(Device *, const char *params);
    BufferType *(*get_buffer_type)(Device *);
    void *host_buffers[2];
    bool (*supports_op)(Device *, const Tensor *);
    bool (*supports_buft)(Device *, BufferType *);
    void *offload_op;
    Event *(*event_new)(Device *);
    void (*event_free)(Device *, Event *);
    void (*event_synchronize)(Device *, Event *);
    Registry *registry;
    void *context;
};

// struct ggml_backend_reg
struct Registry {
    int32_t api_version;
    const char *(*get_name)(Registry *);
    size_t (*get_device_count)(Registry *);
    Device *(*get_device)(Registry *, size_t index);
    void *(*get_proc_address)(Registry *, const char *name);
    void *context;
};

// struct ggml_type_traits_cpu
struct TypeTraits {
    void (*from_float)(const float *from, void *to, int64_t count);
    void (*vec_dot)(int count, float *sum, size_t, const void *a, size_t, const void *b, size_t,
                    int num_rows);
    int32_t vec_dot_type;
    int64_t num_rows;
};

// struct ggml_init_params
struct InitParams {
    size_t num_bytes;
    void *memory;
    bool no_alloc;
};

// The build of llama.cpp that was chosen: a function of its libllama, one of the library that holds its
// CPU backend, and GGML_BACKEND_API_VERSION.
struct Build {
    const void *llama_function, *cpu_function;
    int32_t api_version;
};

// ggml's functions and the codes of its operations.
struct Ggml {
    int32_t api_version;

    void *(*init)(InitParams);
    void (*free)(void *context);
    Graph *(*new_graph_custom)(void *context, size_t num_nodes, bool grads);
    size_t (*graph_overhead_custom)(size_t num_nodes, bool grads);
    void (*graph_clear)(Graph *);
    void (*graph_add_node)(Graph *, Tensor *);
    void (*build_forward_expand)(Graph *, Tensor *result);
    int (*graph_n_nodes)(Graph *);
    Tensor *(*graph_node)(Graph *, int index);
    size_t (*type_size)(int32_t type);
    int64_t (*blck_size)(int32_t type);
    const char *(*op_name)(int32_t op);
    Buffer *(*backend_buffer_init)(BufferType *, BufferInterface, void *context, size_t num_bytes);
    bool (*backend_buft_is_host)(BufferType *);
    BufferType *(*backend_cpu_buffer_type)();
    Status (*backend_graph_compute)(Backend *, Graph *);
    void (*backend_free)(Backend *);
    void (*backend_register)(Registry *);
    void (*backend_unload)(Registry *);
    Device *(*backend_dev_by_type)(int32_t type);
    Registry *(*backend_reg_get)(size_t index);
    Backend *(*backend_cpu_init)();
    void (*backend_cpu_set_n_threads)(Backend *, int num_threads);
    const TypeTraits *(*get_type_traits_cpu)(int32_t type);
    void (*abort)(const char *file, int line, const char *format, ...);  // does not return
    // Of other devices than the CPU:
    Backend *(*backend_dev_init)(Device *, const char *params);
    BufferType *(*backend_dev_buffer_type)(Device *);
    BufferType *(*backend_dev_host_buffer_type)(Device *);
    Buffer *(*backend_buft_alloc_buffer)(BufferType *, size_t num_bytes);
    size_t (*backend_buft_get_alignment)(BufferType *);
    size_t (*backend_buft_get_max_size)(BufferType *);
    size_t (*backend_buft_get_alloc_size)(BufferType *, const Tensor *);
    void *(*backend_buffer_get_base)(Buffer *);
    void (*backend_buffer_clear)(Buffer *, uint8_t value);
    void (*backend_buffer_set_usage)(Buffer *, int32_t usage);
    void (*backend_buffer_free)(Buffer *);
    Status (*backend_tensor_alloc)(Buffer *, Tensor *, void *address);
    Status (*backend_view_init)(Tensor *);
    void (*backend_tensor_set)(Tensor *, const void *from, size_t offset, size_t num_bytes);
    void (*backend_tensor_get)(const Tensor *, void *to, size_t offset, size_t num_bytes);
    void (*backend_tensor_set_async)(Backend *, Tensor *, const void *from, size_t offset,
                                     size_t num_bytes);
    void (*backend_tensor_get_async)(Backend *, const Tensor *, void *to, size_t offset,
                                     size_t num_bytes);
    Status (*backend_graph_compute_async)(Backend *, Graph *);
    void (*backend_synchronize)(Backend *);

    int32_t op_mul_mat, op_mul_mat_id, op_glu, op_add_id, op_unary, op_sqr, op_scale, op_clamp, op_mul,
        op_add, op_view, op_reshape, op_flash_attn_ext, op_custom, op_argsort;

    int64_t row_bytes(int32_t type, int64_t count) const {
        return count / blck_size(type) * (int64_t)type_size(type);
    }
};

// Find all of it in the libraries of a build. Returns what is wrong, or an empty text.
std::string load_ggml(const Build &build);
// What was loaded.
const Ggml &ggml();

// A buffer type that haversack makes, in both layouts: ggml reads the one of its interface's version.
class OwnBufferType {
  public:
    // Have `fill` set the fields of both.
    template <class Fill> void fill(Fill fill) { fill(type2_), fill(type3_); }
    BufferType *address() { return is_2() ? (BufferType *)&type2_ : (BufferType *)&type3_; }
    static void *context_of(BufferType *type) {
        return is_2() ? ((BufferType2 *)type)->context : ((BufferType3 *)type)->context;
    }

  private:
    static bool is_2() { return ggml().api_version == 2; }

    BufferType2 type2_{};
    BufferType3 type3_{};
};

}  // namespace haversack
