// Memory of a ggml device and tensors in it.
#pragma once

#include <memory>
#include <vector>

#include "ggml.hpp"
#include "guard.hpp"

namespace haversack {

// The end of a call into a device that an exception of its back end left.
struct DeviceError {};

// Call `function` of a device's back end. Throws DeviceError where that throws or gives up.
template <class Function> auto call_device(Function function) {
    Guard guard;
    try {
        return function();
#if defined(__linux__)
    } catch (const abi::__forced_unwind &) {  // the thread ends, as Python's do when it exits
        throw;
#endif
    } catch (...) {
        throw DeviceError{};
    }
}

struct FreeBuffer {
    void operator()(Buffer *buffer) const { ggml().backend_buffer_free(buffer); }
};
using DeviceBuffer = std::unique_ptr<Buffer, FreeBuffer>;

// A back end of a device: an order of work of its own.
struct FreeBackend {
    void operator()(Backend *backend) const { ggml().backend_free(backend); }
};
using DeviceBackend = std::unique_ptr<Backend, FreeBackend>;

// A buffer of zeros in the device's memory, because some kernels read what lies between rows. Null if
// there is no room for it.
DeviceBuffer make_device_buffer(Device *device, size_t num_bytes);

// Memory of the host that the device copies from and to: page-locked where its back end has that.
class Staging {
  public:
    explicit Staging(Device *device) : device_(device) {}
    // Have at least so many bytes; what was in them is lost.
    char *bytes(size_t num_bytes);

  private:
    Device *const device_;
    DeviceBuffer locked_;
    std::vector<char> plain_;
    char *base_ = nullptr;
    size_t num_bytes_ = 0;
};

}  // namespace haversack
