#include "simulated.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <system_error>

#include "graph_copy.hpp"
#include "system.hpp"

namespace haversack {

namespace {

constexpr size_t TENSOR_ALIGNMENT_BYTES = 128;
constexpr size_t SHORT_COPY_BYTES = 64 * 1024;  // copied sooner than a thread wakes up

double speed(double bytes_s) { return bytes_s > 0 ? bytes_s : std::numeric_limits<double>::infinity(); }

char *at(const Tensor *tensor, size_t offset) { return (char *)tensor->data + offset; }

Stream::Moment &moment_of(Event *event) { return *(Stream::Moment *)event->context; }

}  // namespace

struct SimulatedDevice::OfBackend {
    SimulatedDevice &device;
    Stream stream;
    std::unique_ptr<Cpu> cpu;  // large enough for the largest graph so far
    size_t most_nodes = 0;
    std::atomic<bool> failed{false};

    explicit OfBackend(SimulatedDevice &of) : device(of) {}
    void compute(const GraphCopy &graph);
};

// ------------------------------------------------------------------ device
SimulatedDevice::SimulatedDevice(const SimulatedShape &shape, const char *name, const char *description)
    : shape_(shape), name_(name), description_(description),
      to_device_(speed(shape.to_device_bytes_s), shape.latency_s),
      to_host_(speed(shape.to_host_bytes_s), shape.latency_s),
      processor_(speed(shape.memory_bytes_s), shape.launch_s) {
    fill_registry();
    fill_device();
    fill_buffer_type();
    ggml().backend_register(&registry_);
}

SimulatedDevice::~SimulatedDevice() { ggml().backend_unload(&registry_); }

void SimulatedDevice::fill_registry() {
    registry_.api_version = ggml().api_version;
    registry_.context = this;
    registry_.get_name = [](Registry *) { return "Simulated"; };
    registry_.get_device_count = [](Registry *) { return size_t(1); };
    registry_.get_device = [](Registry *registry, size_t) {
        return ((SimulatedDevice *)registry->context)->device();
    };
    registry_.get_proc_address = [](Registry *, const char *) { return (void *)nullptr; };
}

void SimulatedDevice::fill_device() {
    device_.registry = &registry_;
    device_.context = this;
    device_.get_name = [](Device *device) { return of(device).name_.c_str(); };
    device_.get_description = [](Device *device) { return of(device).description_.c_str(); };
    device_.get_memory = [](Device *device, size_t *free, size_t *total) {
        *total = of(device).shape_.memory_bytes;
        *free = *total - of(device).counts().used_bytes;
    };
    device_.get_type = [](Device *) { return int32_t(DEVICE_TYPE_GPU); };
    device_.get_props = [](Device *device, DeviceProperties *wanted) {
        *wanted = {};
        wanted->name = device->get_name(device);
        wanted->description = device->get_description(device);
        device->get_memory(device, &wanted->memory_free, &wanted->memory_total);
        wanted->type = DEVICE_TYPE_GPU;
        wanted->is_async = wanted->has_events = true;
    };
    device_.init_backend = make_backend;
    device_.get_buffer_type = [](Device *device) { return of(device).buffer_type_.address(); };
    device_.supports_op = [](Device *, const Tensor *op) {
        Device *cpu = ggml().backend_dev_by_type(DEVICE_TYPE_CPU);
        return cpu->supports_op(cpu, op);
    };
    device_.supports_buft = [](Device *device, BufferType *type) {
        return type == of(device).buffer_type_.address();
    };
    device_.event_new = [](Device *device) { return new Event{device, new Stream::Moment}; };
    device_.event_free = [](Device *, Event *event) {
        delete &moment_of(event);
        delete event;
    };
    device_.event_synchronize = [](Device *, Event *event) { moment_of(event).wait(); };
}

void SimulatedDevice::fill_buffer_type() {
    buffer_type_.fill([this](auto &made) {
        made.get_name = [](BufferType *type) { return of(type).name_.c_str(); };
        made.alloc_buffer = allocate;
        made.get_alignment = [](BufferType *) { return TENSOR_ALIGNMENT_BYTES; };
        made.is_host = [](BufferType *) { return false; };
        made.device = &device_;
        made.context = this;
    });
}

SimulatedCounts SimulatedDevice::counts() {
    std::lock_guard<std::mutex> lock(counting_);
    return counts_;
}

bool SimulatedDevice::fails(SimulatedFault what) {
    return left_until_fault_[what] > 0 && --left_until_fault_[what] == 0;
}

void SimulatedDevice::count_copy(int64_t &bytes, size_t num_bytes) {
    if (fails(FAIL_COPY)) give_up("a copy failed");
    std::lock_guard<std::mutex> lock(counting_);
    bytes += num_bytes;
    counts_.num_copies++;
}

void SimulatedDevice::note_late(double late_s) {
    std::lock_guard<std::mutex> lock(counting_);
    counts_.late_s += late_s;
}

// As CUDA's and other back ends do where their device fails.
void SimulatedDevice::give_up(const char *what) {
    ggml().abort("simulated.cpp", __LINE__, "%s: %s", name_.c_str(), what);
}

// ------------------------------------------------------------------ buffers
Buffer *SimulatedDevice::allocate(BufferType *type, size_t num_bytes) {
    SimulatedDevice &self = of(type);
    if (self.fails(FAIL_ALLOCATION)) return nullptr;
    std::lock_guard<std::mutex> lock(self.counting_);
    SimulatedCounts &counts = self.counts_;
    if (counts.used_bytes + (int64_t)num_bytes > self.shape_.memory_bytes) return nullptr;
    void *memory = foreign_memory(std::max<size_t>(num_bytes, 1));
    if (!memory) return nullptr;
    counts.used_bytes += num_bytes;
    counts.peak_bytes = std::max(counts.peak_bytes, counts.used_bytes);
    BufferInterface iface{};
    iface.free_buffer = free_buffer;
    iface.get_base = [](Buffer *buffer) { return buffer->context; };
    iface.set_tensor = set_tensor;
    iface.get_tensor = get_tensor;
    iface.memset_tensor = [](Buffer *, Tensor *tensor, uint8_t value, size_t offset, size_t count) {
        std::memset(at(tensor, offset), value, count);
    };
    iface.clear = [](Buffer *buffer, uint8_t value) {
        std::memset(buffer->context, value, buffer->num_bytes);
    };
    return ggml().backend_buffer_init(type, iface, memory, num_bytes);
}

void SimulatedDevice::free_buffer(Buffer *buffer) {
    SimulatedDevice &self = of(buffer);
    release_addresses(buffer->context, std::max<size_t>(buffer->num_bytes, 1));
    std::lock_guard<std::mutex> lock(self.counting_);
    self.counts_.used_bytes -= buffer->num_bytes;
}

void SimulatedDevice::set_tensor(Buffer *buffer, Tensor *tensor, const void *data, size_t offset,
                                 size_t num_bytes) {
    SimulatedDevice &self = of(buffer);
    self.count_copy(self.counts_.to_device_bytes, num_bytes);
    const double due_s = self.to_device_.admit(num_bytes);
    if (self.shape_.computes) std::memcpy(at(tensor, offset), data, num_bytes);
    wait_until(due_s);
}

void SimulatedDevice::get_tensor(Buffer *buffer, const Tensor *tensor, void *data, size_t offset,
                                 size_t num_bytes) {
    SimulatedDevice &self = of(buffer);
    self.count_copy(self.counts_.to_host_bytes, num_bytes);
    const double due_s = self.to_host_.admit(num_bytes);
    std::memcpy(data, at(tensor, offset), num_bytes);
    wait_until(due_s);
}

// ------------------------------------------------------------------ streams
Backend *SimulatedDevice::make_backend(Device *device, const char *) {
    static const uint8_t guid[16] = {'h', 'a', 'v', 'e', 'r', 's', 'a', 'c', 'k', 2};
    std::unique_ptr<OfBackend> own;
    try {
        own = std::make_unique<OfBackend>(of(device));
    } catch (const std::system_error &) {  // no thread; no exception may cross llama.cpp's frames
        return nullptr;
    }
    auto *backend = new Backend{};
    backend->guid = guid;
    backend->get_name = [](Backend *backend) { return of(backend).device.name_.c_str(); };
    backend->free = free_backend;
    backend->set_tensor_async = set_async;
    backend->get_tensor_async = get_async;
    backend->synchronize = synchronize;
    backend->graph_compute = compute;
    backend->event_record = [](Backend *backend, Event *event) {
        moment_of(event) = of(backend).stream.now();
    };
    backend->event_wait = [](Backend *backend, Event *event) {
        of(backend).stream.begin_after(moment_of(event));
    };
    backend->device = device;
    backend->context = own.release();
    std::lock_guard<std::mutex> lock(of(device).counting_);
    of(device).counts_.num_streams++;
    return backend;
}

void SimulatedDevice::free_backend(Backend *backend) {
    SimulatedDevice &self = of(backend).device;
    delete &of(backend);
    delete backend;
    std::lock_guard<std::mutex> lock(self.counting_);
    self.counts_.num_streams--;
}

void SimulatedDevice::set_async(Backend *backend, Tensor *tensor, const void *data, size_t offset,
                                size_t num_bytes) {
    SimulatedDevice &self = of(backend).device;
    self.count_copy(self.counts_.to_device_bytes, num_bytes);
    char *target = at(tensor, offset);
    const bool computes = self.shape_.computes;
    of(backend).stream.add([=] { if (computes) std::memcpy(target, data, num_bytes); }, self.to_device_,
                           num_bytes, !computes || num_bytes <= SHORT_COPY_BYTES);
}

void SimulatedDevice::get_async(Backend *backend, const Tensor *tensor, void *data, size_t offset,
                                size_t num_bytes) {
    SimulatedDevice &self = of(backend).device;
    self.count_copy(self.counts_.to_host_bytes, num_bytes);
    const char *source = at(tensor, offset);
    of(backend).stream.add([=] { std::memcpy(data, source, num_bytes); }, self.to_host_, num_bytes,
                           num_bytes <= SHORT_COPY_BYTES);
}

Status SimulatedDevice::compute(Backend *backend, Graph *graph) {
    OfBackend &own = of(backend);
    SimulatedDevice &self = own.device;
    if (self.fails(FAIL_GRAPH)) return COMPUTE_FAILED;
    {
        std::lock_guard<std::mutex> lock(self.counting_);
        self.counts_.num_graphs++;
    }
    const auto copy = std::make_shared<GraphCopy>(graph);
    const bool computes = self.shape_.computes;
    own.stream.add([&own, copy, computes] { computes ? own.compute(*copy) : copy->clear(); },
                   self.processor_, copy->bytes_read(), !computes);
    return SUCCESS;
}

void SimulatedDevice::OfBackend::compute(const GraphCopy &graph) {
    std::lock_guard<std::mutex> lock(device.computing_);
    if (!cpu || graph.nodes().size() > most_nodes) {
        most_nodes = std::max(graph.nodes().size(), Cpu::MOST_NODES);
        cpu = std::make_unique<Cpu>(device.shape_.num_threads, most_nodes);
    }
    if (cpu->compute(graph.nodes().data(), graph.nodes().size()) != SUCCESS) failed = true;
}

void SimulatedDevice::synchronize(Backend *backend) {
    OfBackend &own = of(backend);
    own.device.note_late(own.stream.synchronize());
    if (own.failed.exchange(false) || own.device.fails(FAIL_SYNCHRONIZE))
        own.device.give_up("work that was queued failed");
}

}  // namespace haversack
