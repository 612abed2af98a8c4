// Reads files into slots, many reads at once: demand reads first, then a few prefetches. A ring
// (ring.hpp) makes the reads if all files are plain and the kernel has one, otherwise threads do.
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

// Values of a FAILED read's `error` besides an errno.
enum : int32_t { FILE_ENDED = -1, FOREIGN_ERROR = -2 };

// One read; devices/_native/own.py declares the same fields. The caller keeps it until it is done.
struct Read {
    uint8_t *room;       // where the `length` bytes from `offset` land
    int64_t offset, length;
    int64_t need;        // the least number of bytes that must come
    int64_t from, to;    // places in the room: where the wanted bytes land, and where they must lie
    int64_t num_bytes;   // number of wanted bytes
    int32_t file;
    int32_t ahead;
    std::atomic<int32_t> state;
    int32_t error;
    int64_t got;         // bytes that came before an error
    double due_s;        // of a paced file: the moment when the read may be done

    bool done() const { return state.load(std::memory_order_acquire) >= CAME; }
    bool came() const { return state.load(std::memory_order_acquire) == CAME; }
};

// Makes a read of a file that is not plain; returns 0 if all needed bytes came.
using ReadInto = int32_t (*)(Read *read);
// Returns whether the waiting call shall stop.
using Poll = bool (*)();

struct Counts {
    int64_t bytes_read;
    double busy_s;  // time in which at least one read was under way
    double wait_s;  // time in which calls waited
    int32_t num_ahead, num_reading;  // now: prefetches that wait, and reads under way
};

// A drive or a link of a steady speed, for benchmarks. It serves reads in order; idle time earns nothing.
class Pace {
  public:
    Pace(double bytes_s, double latency_s) : bytes_s_(bytes_s), latency_s_(latency_s) {}
    // Queue a read that begins at `earliest_s` or later. Returns the moment (of `now_s`) when it is done.
    double admit(int64_t num_bytes, double earliest_s = 0);
    // Without it a read takes its time, and the bytes in its room stay as they are.
    std::atomic<bool> copies{true};

  private:
    const double bytes_s_, latency_s_;
    double free_at_s_ = 0;
    std::mutex mutex_;
};

class Ring;

class Readers {
  public:
    // At most `num_readers` reads are under way at once, `num_ahead` of them prefetches. With
    // `with_ring` a ring is used if there is one. Throws std::system_error if no thread starts.
    Readers(int num_readers, int num_ahead, ReadInto read_into, bool with_ring);
    ~Readers();

    // Add a file, open as `descriptor`, whose reads are direct or not. -1: `read_into` makes its
    // reads. With `pace` its reads take as long as that says.
    void add_file(int descriptor, bool direct, Pace *pace);
    // Make the pages of the `num_bytes` of slots at `base` ahead of reads. Returns when no page
    // beyond them is being made.
    void touch_ahead(uint8_t *base, int64_t num_bytes) { toucher_.set_memory(base, num_bytes); }
    void touch_gently(bool gently) { toucher_.be_gentle(gently); }
    // How far from `base` reads find pages that were made.
    int64_t made_bytes(const uint8_t *base) { return toucher_.made_bytes(base); }
    // Whether making a page takes longer than reading its bytes.
    bool pages_are_dear();
    // Seconds that the drive took for a byte; infinite before it was read from.
    double s_per_byte();
    // Begin `reads` in this order as soon as possible. After `close` they are cancelled.
    void submit(Read *const *reads, size_t count);
    void demand(Read *const *reads, size_t count);
    void cancel(Read *const *reads, size_t count);
    // Return when all (or any) are done; false if `poll` returned true before.
    bool wait(Read *const *reads, size_t count, bool all, Poll poll);
    // Cancel the reads that have not begun, and wait for the others.
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
    // With a ring, a read whose bytes came passes through these. It is READING until it is done.
    std::deque<Read *> arrived_;  // reads whose bytes may have to be moved
    std::vector<Read *> early_;   // whose bytes lie in place before they are due
    // Idle threads, reads on the drive, prefetches among them, and reads that left the drive and
    // are not done.
    int idle_ = 0, reading_ = 0, reading_ahead_ = 0, moving_ = 0;
    bool closing_ = false;
    double busy_since_ = 0;
    Counts counts_{};
};

}  // namespace haversack
