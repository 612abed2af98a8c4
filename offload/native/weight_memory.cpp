#include "weight_memory.hpp"

#include "system.hpp"

namespace haversack {

namespace {

Buffer *allocate(BufferType *, size_t num_bytes) {
    Buffer *made = ggml().backend_buft_alloc_buffer(ggml().backend_cpu_buffer_type(), num_bytes);
    if (made) prefer_huge_pages(ggml().backend_buffer_get_base(made), num_bytes);
    return made;
}

}  // namespace

BufferType *weight_memory() {
    static OwnBufferType type;
    static const bool is_filled = [] {
        type.fill([](auto &made) {
            made.get_name = [](BufferType *) -> const char * { return "CPU"; };
            made.alloc_buffer = allocate;
            made.get_alignment = [](BufferType *) {
                return ggml().backend_buft_get_alignment(ggml().backend_cpu_buffer_type());
            };
            made.is_host = [](BufferType *) { return true; };
        });
        return true;
    }();
    static_cast<void>(is_filled);
    return type.address();
}

}  // namespace haversack
