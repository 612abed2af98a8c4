// Reads of a file of known bytes, by readers made one way or another, that a test can hold back.
#pragma once

#include "check.hpp"
#include "fake_ring.hpp"
#include "faults.hpp"
#include "readers.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

namespace haversack {

constexpr int64_t PAGE_BYTES = 4096, ROOM_BYTES = 16 * PAGE_BYTES,
                  FILE_BYTES = 200 * PAGE_BYTES + 1234;

enum Way { THREADS, FAKE_RING, SYSTEM_RING };
const Way EVERY_WAY[] = {THREADS, FAKE_RING, SYSTEM_RING}, SCRIPTED[] = {THREADS, FAKE_RING};

inline uint8_t byte_at(int64_t place) { return static_cast<uint8_t>(place * 0x9E3779B1u >> 13); }

inline int write_file() {
    char path[] = "/tmp/haversack-readers-XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0);
    unlink(path);
    std::vector<uint8_t> bytes(FILE_BYTES);
    for (int64_t i = 0; i < FILE_BYTES; ++i) bytes[i] = byte_at(i);
    CHECK(pwrite(file, bytes.data(), FILE_BYTES, 0) == FILE_BYTES);
    return file;
}

// The same file past the page cache; -1 where its file system cannot.
inline int reopened_direct(int file) {
    return open(("/proc/self/fd/" + std::to_string(file)).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
}

// A read of `num_bytes` from `offset` on, and its room. Pages are read whole, as the engine does,
// so the bytes land behind the page's start and are moved to `to`.
struct Wanted {
    Wanted(int64_t offset, int64_t num_bytes, int64_t to = 0, bool ahead = false, int32_t file = 0)
        : room(static_cast<uint8_t *>(std::aligned_alloc(PAGE_BYTES, ROOM_BYTES))), place(offset) {
        const int64_t from = offset % PAGE_BYTES, need = from + num_bytes;
        const int64_t length = (need + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        std::memset(room.get(), 0, ROOM_BYTES);
        read.room = room.get(), read.offset = offset - from, read.length = length, read.need = need;
        read.from = from, read.to = to, read.num_bytes = num_bytes;
        read.file = file, read.ahead = ahead;
    }
    bool is_whole() const {
        for (int64_t i = 0; i < read.num_bytes; ++i)
            if (room.get()[read.to + i] != byte_at(place + i)) return false;
        return read.came();
    }
    bool has_failed(int32_t error) const { return read.state == FAILED && read.error == error; }

    struct Free {
        void operator()(uint8_t *bytes) const { std::free(bytes); }
    };
    std::unique_ptr<uint8_t, Free> room;
    int64_t place;
    Read read{};
};

using Wants = std::vector<std::unique_ptr<Wanted>>;

inline std::vector<Read *> reads_of(const Wants &wants) {
    std::vector<Read *> reads;
    for (auto &wanted : wants) reads.push_back(&wanted->read);
    return reads;
}

inline Wants random_wants(std::minstd_rand &random, int count, int num_files = 1) {
    Wants wants;
    for (int i = 0; i < count; ++i) {
        const int64_t num_bytes = 1 + random() % (ROOM_BYTES - 2 * PAGE_BYTES);
        wants.push_back(std::make_unique<Wanted>(random() % (FILE_BYTES - num_bytes), num_bytes,
                                                 random() % PAGE_BYTES, random() % 3 == 0,
                                                 random() % num_files));
    }
    return wants;
}

// Readers of one file, made one of the ways.
struct Bench {
    explicit Bench(Way way, int num_readers = 4, Pace *pace = nullptr) : file(write_file()) {
        if (way == FAKE_RING) fake = std::make_unique<FakeRing>();
        readers = std::make_unique<Readers>(num_readers, 2, nullptr, way != THREADS);
        readers->add_file(file, false, pace);
        CHECK(way == SYSTEM_RING || readers->by_ring() == (way == FAKE_RING));
    }
    ~Bench() {
        readers.reset();
        faults::answer_reads({});
        ::close(file);
    }
    void submit(Wanted &wanted) { submit(std::vector<Read *>{&wanted.read}); }
    void submit(const std::vector<Read *> &reads) { readers->submit(reads.data(), reads.size()); }
    void wait(const std::vector<Read *> &reads) {
        CHECK(readers->wait(reads.data(), reads.size(), true, nullptr));
    }
    void finish(Wanted &wanted) {
        submit(wanted);
        wait({&wanted.read});
    }

    int file;
    std::unique_ptr<FakeRing> fake;
    std::unique_ptr<Readers> readers;
};

// Threads that read stand here until the test opens it.
class Gate {
  public:
    void pass() {
        std::unique_lock<std::mutex> lock(mutex_);
        ++num_waiting_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return is_open_; });
    }
    void await(int count) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return num_waiting_ >= count; });
    }
    void open() {
        std::lock_guard<std::mutex> lock(mutex_);
        is_open_ = true;
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int num_waiting_ = 0;
    bool is_open_ = false;
};

// Reads that are under way and do not end before `release`.
struct HeldReads {
    HeldReads(Way way, Bench &bench) : bench_(bench) {
        if (way == FAKE_RING) bench.fake->holds = true;
        else
            faults::answer_reads([this](int file, void *room, size_t length, off_t offset) {
                gate_.pass();
                return faults::read_truly(file, room, length, offset);
            });
    }
    void await(int count) {
        if (bench_.fake) bench_.fake->await_held(count);
        else gate_.await(count);
    }
    void release() {
        if (bench_.fake) bench_.fake->release();
        else gate_.open();
    }

  private:
    Bench &bench_;
    Gate gate_;
};

// A read gets these answers one after the other, then the file's own.
inline faults::Answer first(std::vector<ssize_t> answers) {
    auto left = std::make_shared<std::vector<ssize_t>>(answers.rbegin(), answers.rend());
    return [left](int file, void *room, size_t length, off_t offset) -> ssize_t {
        if (left->empty()) return faults::read_truly(file, room, length, offset);
        const ssize_t answer = left->back();
        left->pop_back();
        if (answer < 0) return answer;
        return faults::read_truly(file, room, std::min<size_t>(answer, length), offset);
    };
}

}  // namespace haversack
