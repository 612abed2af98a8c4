// Linux's ring: io_uring.
#include "ring.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace haversack {

namespace {

constexpr unsigned NUM_ENTRIES = 64;
constexpr unsigned MOST_DELAYS = 100;     // about ten seconds if only waiting readers flush
constexpr int64_t MOST_BYTES = 1 << 30;  // of one request; the kernel would cut it short at 2 GiB
constexpr unsigned NEEDED = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;

template <typename T> T load(const T *place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
template <typename T> void store(T *place, T value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }

// The two queues, in memory that the kernel shares.
struct Queues {
    char *memory;
    size_t num_bytes;
    io_uring_sqe *entries;
    unsigned num_entries;
    unsigned *tail, *mask, *order;             // the queue of requests
    unsigned *done_head, *done_tail, *done_mask;  // the queue of results
    io_uring_cqe *done;

    ~Queues() {
        munmap(entries, num_entries * sizeof(io_uring_sqe));
        munmap(memory, num_bytes);
    }
};

class IoUring : public Ring {
  public:
    explicit IoUring(int descriptor) : descriptor_(descriptor) {}
    ~IoUring() override { ::close(descriptor_); }
    bool map(const io_uring_params &params);

    // One entry is kept for `wake`.
    bool full() const override { return num_under_way_ + 1 >= queues_->num_entries; }
    void push(Read *read, int descriptor, int64_t start) override;
    bool flush() override;
    void sleep(double most_s) override;
    void wake() override;
    Read *pop(int64_t *result) override;

  private:
    void push_entry(uint8_t operation, int descriptor, void *address, uint32_t length, int64_t offset,
                    Read *read);
    Read *pop_refused(int64_t *result);

    const int descriptor_;
    std::unique_ptr<Queues> queues_;
    unsigned num_queued_ = 0, num_under_way_ = 0;
    unsigned num_delays_ = 0;  // consecutive flushes from which the kernel took nothing
    int refusal_ = 0;          // the errno with which the kernel refused the queued reads
};

bool IoUring::map(const io_uring_params &params) {
    size_t asked = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t done = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
    size_t num_bytes = std::max(asked, done);
    auto mapped = [this](size_t size, off_t what) {
        return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor_, what);
    };
    void *memory = mapped(num_bytes, IORING_OFF_SQ_RING);
    if (memory == MAP_FAILED) return false;
    void *entries = mapped(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
    if (entries == MAP_FAILED) {
        munmap(memory, num_bytes);
        return false;
    }
    char *at = (char *)memory;
    auto number = [at](unsigned offset) { return (unsigned *)(at + offset); };
    const auto &sq = params.sq_off;
    const auto &cq = params.cq_off;
    queues_.reset(new Queues{at, num_bytes, (io_uring_sqe *)entries, params.sq_entries,
                             number(sq.tail), number(sq.ring_mask), number(sq.array),
                             number(cq.head), number(cq.tail), number(cq.ring_mask),
                             (io_uring_cqe *)(at + cq.cqes)});
    return true;
}

void IoUring::push(Read *read, int descriptor, int64_t start) {
    num_under_way_++;
    push_entry(IORING_OP_READ, descriptor, read->room + start,
               std::min(read->length - start, MOST_BYTES), read->offset + start, read);
}

void IoUring::push_entry(uint8_t operation, int descriptor, void *address, uint32_t length,
                      int64_t offset, Read *read) {
    unsigned tail = *queues_->tail, place = tail & *queues_->mask;
    io_uring_sqe &entry = queues_->entries[place];
    entry = {};
    entry.opcode = operation;
    entry.fd = descriptor;
    entry.addr = (uint64_t)address;
    entry.len = length;
    entry.off = offset;
    entry.user_data = (uint64_t)read;
    queues_->order[place] = place;
    store(queues_->tail, tail + 1);
    num_queued_++;
}

bool IoUring::flush() {
    while (num_queued_) {
        int taken = syscall(SYS_io_uring_enter, descriptor_, num_queued_, 0, 0, nullptr, 0);
        if (taken < 0 && errno == EINTR) continue;
        if (taken <= 0) {
            int error = taken < 0 ? errno : EAGAIN;
            bool may_pass = error == EAGAIN || error == EBUSY || error == ENOMEM;
            if (!may_pass || ++num_delays_ >= MOST_DELAYS) refusal_ = error;
            return false;
        }
        num_queued_ -= taken;
        num_delays_ = 0;
    }
    return true;
}

void IoUring::sleep(double most_s) {
    if (*queues_->done_head != load(queues_->done_tail)) return;
    double whole_s = std::floor(most_s);
    __kernel_timespec time{(int64_t)whole_s, (int64_t)(1e9 * (most_s - whole_s))};
    io_uring_getevents_arg argument{};
    argument.ts = (uint64_t)&time;
    constexpr unsigned FLAGS = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    int failed = syscall(SYS_io_uring_enter, descriptor_, 0, 1, FLAGS, &argument, sizeof argument);
    if (failed < 0 && errno != ETIME && errno != EINTR) usleep(1000);  // do not spin
}

void IoUring::wake() {
    push_entry(IORING_OP_NOP, -1, nullptr, 0, 0, nullptr);
    flush();
}

Read *IoUring::pop(int64_t *result) {
    unsigned head = *queues_->done_head;
    while (head != load(queues_->done_tail)) {
        const io_uring_cqe &done = queues_->done[head & *queues_->done_mask];
        Read *read = (Read *)done.user_data;
        *result = done.res;
        store(queues_->done_head, ++head);
        if (!read) continue;  // a `wake`
        num_under_way_--;
        return read;
    }
    return refusal_ ? pop_refused(result) : nullptr;
}

// Take back the last queued read. The kernel looks at the queue's end only in a flush.
Read *IoUring::pop_refused(int64_t *result) {
    while (num_queued_) {
        unsigned tail = *queues_->tail - 1;
        Read *read = (Read *)queues_->entries[tail & *queues_->mask].user_data;
        store(queues_->tail, tail);
        num_queued_--;
        if (!read) continue;  // a `wake`
        num_under_way_--;
        *result = -refusal_;
        return read;
    }
    refusal_ = 0, num_delays_ = 0;
    return nullptr;
}

}  // namespace

std::unique_ptr<Ring> Ring::open() {
    io_uring_params params{};
    int descriptor = syscall(SYS_io_uring_setup, NUM_ENTRIES, &params);
    if (descriptor < 0) return nullptr;
    auto ring = std::make_unique<IoUring>(descriptor);
    bool usable = (params.features & NEEDED) == NEEDED && ring->map(params);
    return usable ? std::move(ring) : nullptr;
}

}  // namespace haversack
