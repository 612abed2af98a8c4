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

struct ContextSizes {
    int64_t context_bytes, compute_bytes;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void
haversack_context_sizes(GetBreakdown get_breakdown, const void *context, ContextSizes *sizes) {
    *sizes = {0, 0};
    get_breakdown(context).each([sizes](void *, const Breakdown &found) {
        sizes->context_bytes += static_cast<int64_t>(found.context);
        sizes->compute_bytes += static_cast<int64_t>(found.compute);
    });
}
