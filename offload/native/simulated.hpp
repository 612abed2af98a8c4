// A simulated GPU: a ggml device whose memory is limited and no host memory, whose copies take as long
// as a link of a chosen speed, and whose graphs llama.cpp's CPU backend computes on other threads. A
// backend of it is a stream; streams overlap, but the link's directions and the processor are one each.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "cpu.hpp"
#include "stream.hpp"

namespace haversack {

// What is simulated. A speed of 0: as fast as this computer.
struct SimulatedShape {
    int64_t memory_bytes;
    double to_device_bytes_s, to_host_bytes_s, latency_s;  // of the link
    double memory_bytes_s, launch_s;  // of the device's own memory; until a graph begins
    int32_t num_threads;
    int32_t computes;  // 0: results are zeros, and only the clock says when they are there
};

// What the device did since it was made.
struct SimulatedCounts {
    int64_t used_bytes, peak_bytes;
    int64_t to_device_bytes, to_host_bytes, num_copies, num_graphs;
    int64_t num_streams;  // now
    double late_s;        // waits took so much longer than on the device that is simulated
};

// What can be made to fail.
enum SimulatedFault : int32_t { FAIL_ALLOCATION = 0, FAIL_COPY, FAIL_GRAPH, FAIL_SYNCHRONIZE, NUM_FAULTS };

class SimulatedDevice {
  public:
    SimulatedDevice(const SimulatedShape &shape, const char *name, const char *description);
    // Takes the device out of ggml's registry. Free its backends and buffers before.
    ~SimulatedDevice();
    SimulatedDevice(const SimulatedDevice &) = delete;

    Device *device() { return &device_; }
    SimulatedCounts counts();
    // From now on the `nth` time (1: the next) fails.
    void fail(SimulatedFault what, int64_t nth) { left_until_fault_[what] = nth; }

  private:
    struct OfBackend;  // a stream

    static SimulatedDevice &of(Device *device) { return *(SimulatedDevice *)device->context; }
    static SimulatedDevice &of(BufferType *type) {
        return *(SimulatedDevice *)OwnBufferType::context_of(type);
    }
    static SimulatedDevice &of(Buffer *buffer) { return of(buffer->type); }
    static OfBackend &of(Backend *backend) { return *(OfBackend *)backend->context; }
    void fill_registry();
    void fill_device();
    void fill_buffer_type();

    static Buffer *allocate(BufferType *type, size_t num_bytes);
    static void free_buffer(Buffer *buffer);
    static void set_tensor(Buffer *, Tensor *, const void *data, size_t offset, size_t num_bytes);
    static void get_tensor(Buffer *, const Tensor *, void *data, size_t offset, size_t num_bytes);
    static Backend *make_backend(Device *, const char *params);
    static void free_backend(Backend *);
    static void set_async(Backend *, Tensor *, const void *data, size_t offset, size_t num_bytes);
    static void get_async(Backend *, const Tensor *, void *data, size_t offset, size_t num_bytes);
    static Status compute(Backend *, Graph *);
    static void synchronize(Backend *);

    bool fails(SimulatedFault what);
    void count_copy(int64_t &bytes, size_t num_bytes);
    void note_late(double late_s);
    void give_up(const char *what);

    const SimulatedShape shape_;
    const std::string name_, description_;
    Registry registry_{};
    Device device_{};
    OwnBufferType buffer_type_;
    Pace to_device_, to_host_, processor_;
    std::mutex computing_;  // one graph at a time
    std::atomic<int64_t> left_until_fault_[NUM_FAULTS] = {};
    std::mutex counting_;
    SimulatedCounts counts_{};
};

}  // namespace haversack
