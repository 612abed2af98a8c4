#include "device_memory.hpp"

namespace haversack {

DeviceBuffer make_device_buffer(Device *device, size_t num_bytes) {
    return call_device([&]() -> DeviceBuffer {
        BufferType *type = ggml().backend_dev_buffer_type(device);
        if (num_bytes > ggml().backend_buft_get_max_size(type)) return nullptr;
        DeviceBuffer made(ggml().backend_buft_alloc_buffer(type, num_bytes));
        if (made) ggml().backend_buffer_clear(made.get(), 0);
        return made;
    });
}

char *Staging::bytes(size_t num_bytes) {
    if (num_bytes <= num_bytes_) return base_;
    locked_.reset();
    if (BufferType *type = ggml().backend_dev_host_buffer_type(device_))
        locked_.reset(ggml().backend_buft_alloc_buffer(type, num_bytes));
    if (!locked_) plain_.resize(num_bytes);
    base_ = locked_ ? (char *)ggml().backend_buffer_get_base(locked_.get()) : plain_.data();
    num_bytes_ = num_bytes;
    return base_;
}

}  // namespace haversack
