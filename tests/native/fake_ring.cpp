#include "fake_ring.hpp"

#include "check.hpp"
#include "faults.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <fcntl.h>
#include <linux/time_types.h>
#include <sys/mman.h>

namespace {

constexpr unsigned NUM_ENTRIES = 64, NUM_RESULTS = 2 * NUM_ENTRIES;

FakeRing *current_ring = nullptr;

template <typename T>
T load(const T *place) {
    return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}
template <typename T>
void store(T *place, T value) {
    __atomic_store_n(place, value, __ATOMIC_RELEASE);
}

void *memory(size_t num_bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    return mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
}

long failed(int error) {
    errno = error;
    return -1;
}

}  // namespace

struct FakeRing::Shared {
    unsigned head, tail, mask, num_entries, flags, num_dropped;
    unsigned done_head, done_tail, done_mask, num_results, num_overflown;
    unsigned order[NUM_ENTRIES];
    io_uring_cqe done[NUM_RESULTS];
};

FakeRing::FakeRing() { current_ring = this; }
FakeRing::~FakeRing() { current_ring = nullptr; }
FakeRing *FakeRing::current() { return current_ring; }

long FakeRing::setup(io_uring_params *params) {
    if (setup_error) return failed(setup_error);
    params->sq_entries = NUM_ENTRIES, params->cq_entries = NUM_RESULTS;
    params->features = features;
    params->sq_off.tail = offsetof(Shared, tail);
    params->sq_off.ring_mask = offsetof(Shared, mask);
    params->sq_off.array = offsetof(Shared, order);
    params->cq_off.head = offsetof(Shared, done_head);
    params->cq_off.tail = offsetof(Shared, done_tail);
    params->cq_off.ring_mask = offsetof(Shared, done_mask);
    params->cq_off.cqes = offsetof(Shared, done);
    return descriptor_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void *FakeRing::map(size_t num_bytes, off_t what) {
    if (num_maps_left-- <= 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *mapped = memory(num_bytes);
    if (what == static_cast<off_t>(IORING_OFF_SQES)) {
        entries_ = static_cast<io_uring_sqe *>(mapped);
    } else {
        CHECK(num_bytes >= offsetof(Shared, done) + sizeof Shared::done);
        shared_ = static_cast<Shared *>(mapped);
        shared_->mask = NUM_ENTRIES - 1, shared_->done_mask = NUM_RESULTS - 1;
    }
    return mapped;
}

long FakeRing::enter(unsigned num_queued, unsigned flags, const void *argument) {
    if (num_queued == 0 && flags & IORING_ENTER_GETEVENTS)
        return sleep(*static_cast<const io_uring_getevents_arg *>(argument));
    std::lock_guard<std::mutex> lock(mutex_);
    if (num_refusals > 0) {
        --num_refusals;
        return failed(refusal);
    }
    const unsigned count = std::min(num_queued, most_taken.load());
    take(count);
    if (!holds) serve_locked(NUM_ENTRIES);
    changed_.notify_all();
    return count;
}

void FakeRing::take(unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
        CHECK(shared_->head != load(&shared_->tail));
        const io_uring_sqe entry = entries_[shared_->order[shared_->head++ & shared_->mask]];
        if (entry.opcode == IORING_OP_NOP) finish(entry, 0);
        else held_.push_back(entry);
    }
    CHECK(held_.size() < NUM_ENTRIES);
}

int FakeRing::serve(int most) {
    std::lock_guard<std::mutex> lock(mutex_);
    const int count = serve_locked(most);
    changed_.notify_all();
    return count;
}

int FakeRing::serve_locked(int most) {
    int count = 0;
    for (; count < most && !held_.empty(); ++count) {
        std::swap(held_[random_() % held_.size()], held_.back());
        const io_uring_sqe entry = held_.back();
        held_.pop_back();
        CHECK(entry.opcode == IORING_OP_READ);
        finish(entry, static_cast<int>(faults::read(entry.fd, reinterpret_cast<void *>(entry.addr),
                                                    entry.len, static_cast<off_t>(entry.off))));
    }
    return count;
}

void FakeRing::finish(const io_uring_sqe &entry, int result) {
    const unsigned tail = shared_->done_tail;
    CHECK(tail - load(&shared_->done_head) < NUM_RESULTS);
    shared_->done[tail & shared_->done_mask] = {};
    shared_->done[tail & shared_->done_mask].user_data = entry.user_data;
    shared_->done[tail & shared_->done_mask].res = result;
    store(&shared_->done_tail, tail + 1);
}

void FakeRing::release() {
    std::lock_guard<std::mutex> lock(mutex_);
    holds = false;
    serve_locked(NUM_ENTRIES);
    changed_.notify_all();
}

void FakeRing::await_held(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return held_.size() >= count || !holds; });
}

long FakeRing::sleep(const io_uring_getevents_arg &argument) {
    const auto &time = *reinterpret_cast<const __kernel_timespec *>(argument.ts);
    std::unique_lock<std::mutex> lock(mutex_);
    const auto any_done = [&] { return load(&shared_->done_head) != shared_->done_tail; };
    const auto most = std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
    return changed_.wait_for(lock, most, any_done) ? 0 : failed(ETIME);
}
