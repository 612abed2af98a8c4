#include "ggml.hpp"

#include <cstring>

#include "system.hpp"

namespace haversack {

namespace {

constexpr int32_t MAX_OPS = 128;

Ggml found;

// libllama does not need the library of a CPU backend that was loaded as a module.
std::string load_functions(void *llama, void *cpu) {
    std::string missing;
    auto load = [&](auto &function, const char *name) {
        void *address = function_of(llama, name);
        if (!address) address = function_of(cpu, name);
        if (!address) missing = name;
        std::memcpy(&function, &address, sizeof address);
    };
    load(found.init, "ggml_init");
    load(found.free, "ggml_free");
    load(found.new_graph_custom, "ggml_new_graph_custom");
    load(found.graph_overhead_custom, "ggml_graph_overhead_custom");
    load(found.graph_clear, "ggml_graph_clear");
    load(found.graph_add_node, "ggml_graph_add_node");
    load(found.build_forward_expand, "ggml_build_forward_expand");
    load(found.graph_n_nodes, "ggml_graph_n_nodes");
    load(found.graph_node, "ggml_graph_node");
    load(found.type_size, "ggml_type_size");
    load(found.blck_size, "ggml_blck_size");
    load(found.op_name, "ggml_op_name");
    load(found.backend_buffer_init, "ggml_backend_buffer_init");
    load(found.backend_buft_is_host, "ggml_backend_buft_is_host");
    load(found.backend_cpu_buffer_type, "ggml_backend_cpu_buffer_type");
    load(found.backend_graph_compute, "ggml_backend_graph_compute");
    load(found.backend_free, "ggml_backend_free");
    load(found.backend_register, "ggml_backend_register");
    load(found.backend_unload, "ggml_backend_unload");
    load(found.backend_dev_by_type, "ggml_backend_dev_by_type");
    load(found.backend_reg_get, "ggml_backend_reg_get");
    load(found.backend_cpu_init, "ggml_backend_cpu_init");
    load(found.backend_cpu_set_n_threads, "ggml_backend_cpu_set_n_threads");
    load(found.get_type_traits_cpu, "ggml_get_type_traits_cpu");
    load(found.abort, "ggml_abort");
    load(found.backend_dev_init, "ggml_backend_dev_init");
    load(found.backend_dev_buffer_type, "ggml_backend_dev_buffer_type");
    load(found.backend_dev_host_buffer_type, "ggml_backend_dev_host_buffer_type");
    load(found.backend_buft_alloc_buffer, "ggml_backend_buft_alloc_buffer");
    load(found.backend_buft_get_alignment, "ggml_backend_buft_get_alignment");
    load(found.backend_buft_get_max_size, "ggml_backend_buft_get_max_size");
    load(found.backend_buft_get_alloc_size, "ggml_backend_buft_get_alloc_size");
    load(found.backend_buffer_get_base, "ggml_backend_buffer_get_base");
    load(found.backend_buffer_clear, "ggml_backend_buffer_clear");
    load(found.backend_buffer_set_usage, "ggml_backend_buffer_set_usage");
    load(found.backend_buffer_free, "ggml_backend_buffer_free");
    load(found.backend_tensor_alloc, "ggml_backend_tensor_alloc");
    load(found.backend_view_init, "ggml_backend_view_init");
    load(found.backend_tensor_set, "ggml_backend_tensor_set");
    load(found.backend_tensor_get, "ggml_backend_tensor_get");
    load(found.backend_tensor_set_async, "ggml_backend_tensor_set_async");
    load(found.backend_tensor_get_async, "ggml_backend_tensor_get_async");
    load(found.backend_graph_compute_async, "ggml_backend_graph_compute_async");
    load(found.backend_synchronize, "ggml_backend_synchronize");
    return missing;
}

std::string load_ops() {
    std::string missing;
    auto load = [&](int32_t &op, const char *name) {
        for (op = 0; op < MAX_OPS && std::strcmp(found.op_name(op), name) != 0; op++) {}
        if (op == MAX_OPS) missing = name;
    };
    load(found.op_mul_mat, "MUL_MAT");
    load(found.op_mul_mat_id, "MUL_MAT_ID");
    load(found.op_glu, "GLU");
    load(found.op_add_id, "ADD_ID");
    load(found.op_unary, "UNARY");
    load(found.op_sqr, "SQR");
    load(found.op_scale, "SCALE");
    load(found.op_clamp, "CLAMP");
    load(found.op_mul, "MUL");
    load(found.op_add, "ADD");
    load(found.op_view, "VIEW");
    load(found.op_reshape, "RESHAPE");
    load(found.op_flash_attn_ext, "FLASH_ATTN_EXT");
    load(found.op_custom, "CUSTOM");
    load(found.op_argsort, "ARGSORT");
    return missing;
}

}  // namespace

std::string load_ggml(const Build &build) {
    void *llama = library_of(build.llama_function), *cpu = library_of(build.cpu_function);
    if (!llama || !cpu) return "its libraries cannot be opened again";
    std::string missing = load_functions(llama, cpu);
    if (!missing.empty()) return "libggml has no function " + missing;
    missing = load_ops();
    if (!missing.empty()) return "libggml has no operation " + missing;
    found.api_version = found.backend_reg_get(0)->api_version;
    if (found.api_version != build.api_version || found.api_version < 2 || found.api_version > 3)
        return "libggml's backend interface has version " + std::to_string(found.api_version) +
               ", need " + std::to_string(build.api_version);
    return "";
}

const Ggml &ggml() { return found; }

}  // namespace haversack
