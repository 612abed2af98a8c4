// Reads from files straight into slots, many at once: demand first, then a few prefetches. They are
// made by a ring (ring.hpp) where all files are plain and the kernel has one, else by threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "touching.hpp"

namespace haversack {

enum State : int32_t { WAITING = 0, READING = 1, CAME = 2, FAILED = 3, CANCELLED = 4 };

// What `error` says of a FAILED read besides an errno.
enum : int32_t { FILE_ENDED = -1, FOREIGN_ERROR = -2 };

// One read; devices/_native/own.py declares the same fields. The caller keeps it until it is done.
struct Read {
    uint8_t *room;       // where `length` bytes from `offset` on land
    int64_t offset, length;
    int64_t need;        // the least that must come
    int64_t from, to;    // where in the room the wanted bytes land, and where they are to lie
    int64_t num_bytes;   // how many they are
    int32_t file;
    int32_t ahead;
    std::atomic<int32_t> state;
    int32_t error;
    int64_t got;         // bytes that came before an error
    double due_s;        // when it may be done, of a paced file

    bool done() const { return state.load(std::memory_order_acquire) >= CAME; }
    bool came() const { return state.load(std::memory_order_acquire) == CAME; }
};

// Reads for a file that is no plain one; 0 if all that was needed came.
using ReadInto = int32_t (*)(Read *read);
// Whether the call that waits shall stop.
using Poll = bool (*)();

struct Counts {
    int64_t bytes_read;
    double busy_s;  // time in which at least one read was under way
    double wait_s;  // time that somebody waited
    int32_t num_ahead, num_reading;  // now: prefetches that wait, and reads under way
};

// A drive of a steady speed, for benchmarks: first come, first served, no credit for idle time.
class Pace {
  public:
    Pace(double bytes_s, double latency_s) : bytes_s_(bytes_s), latency_s_(latency_s) {}
    // Queue a read: the moment (of `now_s`) when it is there.
    double admit(int64_t num_bytes);

  private:
    const double bytes_s_, latency_s_;
    double free_at_s_ = 0;
    std::mutex mutex_;
};

double now_s();

class Ring;

class Readers {
  public:
    // At most `num_readers` reads are under way at once, `num_ahead` of them ahead. `with_ring`: a
    // ring may be used if there is one. Throws std::system_error where no thread can be started.
    Readers(int num_readers, int num_ahead, ReadInto read_into, bool with_ring);
    ~Readers();

    // A file of which `descriptor` is open, `direct` or not; -1: its reads go through `read_into`.
    // With `pace` they take as long as that says.
    void add_file(int descriptor, bool direct, Pace *pace);
    // The first `num_bytes` from `base` on are slots now: their pages are made ahead of reads. Returns
    // when no page beyond is being made.
    void touch_ahead(uint8_t *base, int64_t num_bytes) { toucher_.set_memory(base, num_bytes); }
    // Begin them in this order as soon as that is possible. After `close` they are cancelled.
    void submit(Read *const *reads, size_t count);
    void demand(Read *const *reads, size_t count);
    void cancel(Read *const *reads, size_t count);
    // Return when all (or any) are done; false if `poll` said so before.
    bool wait(Read *const *reads, size_t count, bool all, Poll poll);
    // Cancel what has not begun, wait for the rest.
    void settle(Read *const *reads, size_t count);
    void drain();
    void close();
    Counts counts();
    bool by_ring() const { return ring_ != nullptr; }

  private:
    struct File {
        int descriptor;
        bool direct;
        Pace *pace;
    };
    Read *next();
    void begin(Read *read);
    void leave_drive(Read *read);
    void finish(Read *read);
    void cancel_locked(Read *read);
    // by threads
    void serve();
    void perform(Read *read);
    bool fill(const File &file, Read *read);
    // by a ring
    void feed();
    void reap();
    bool take(Read *read, int64_t result);
    void take_those_that_came();
    void settle_one(std::unique_lock<std::mutex> &lock);
    double finish_those_due();

    const int num_readers_, num_ahead_;
    const ReadInto read_into_;
    std::vector<File> files_;
    Toucher toucher_;
    std::unique_ptr<Ring> ring_;
    std::vector<std::thread> threads_;
    std::mutex close_mutex_, mutex_;
    std::condition_variable work_, progress_;
    std::deque<Read *> demanded_, ahead_;
    // By a ring, a read whose bytes came goes through these; its state is READING until it is done.
    std::deque<Read *> arrived_;  // its bytes may have to be moved
    std::vector<Read *> early_;   // of a paced file: all bytes lie in place, but it is not time yet
    // Reads under way on the drive, those of them ahead, and those that left it and are not done.
    int idle_ = 0, reading_ = 0, reading_ahead_ = 0, moving_ = 0;
    bool closing_ = false;
    double busy_since_ = 0;
    Counts counts_{};
};

}  // namespace haversack
