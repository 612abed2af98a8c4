// Asks llama.cpp for the memory of a context. Its function returns a C++ map, which Python cannot
// receive.
#include "theirs.hpp"

#include <cstddef>
#include <cstdint>

namespace {

// struct llama_memory_breakdown_data (llama-ext.h)
struct Breakdown {
    size_t model, context, compute;
};

// std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>
// llama_get_memory_breakdown(const struct llama_context * ctx)
using GetBreakdown = haversack::theirs::Map<void *, Breakdown> (*)(const void *context);

// What a context and its model take of the memory of one buffer type.
struct BufferSizes {
    void *type;  // ggml_backend_buffer_type_t
    int64_t weight_bytes, context_bytes, compute_bytes;
};

}  // namespace

// Writes at most `most` sizes, and returns how many there are.
extern "C" __attribute__((visibility("default"))) size_t
haversack_context_sizes(GetBreakdown get_breakdown, const void *context, BufferSizes *sizes,
                        size_t most) {
    size_t count = 0;
    get_breakdown(context).each([&](void *type, const Breakdown &found) {
        if (count++ >= most) return;
        *sizes++ = {type, static_cast<int64_t>(found.model), static_cast<int64_t>(found.context),
                    static_cast<int64_t>(found.compute)};
    });
    return count;
}
