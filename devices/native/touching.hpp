// Makes the pages of slots before reads land there. Making a huge page takes up to 5 ms, which the
// thread that starts a read would spend. Empty slots are used in ascending order, so a thread of
// low priority makes pages a bounded distance ahead of the highest address that a read went to.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace haversack {

class Toucher {
  public:
    ~Toucher() { close(); }
    // Allow the first `num_bytes` from `base` to be touched. Returns when no page beyond them is
    // being made, so that the caller may then take memory away.
    void set_memory(uint8_t *base, int64_t num_bytes);
    // Note a read into bytes that end at `end`.
    void follow(const uint8_t *end);
    // Take a small part of a processor's time alone: others compute, and wait for each other.
    void be_gentle(bool gentle);
    // How far from `base` pages were made or used.
    int64_t made_bytes(const uint8_t *base);
    // What making a page took of late; 0 before the first.
    double s_per_byte();
    void close();

  private:
    struct Memory {
        uint8_t *base;
        int64_t num_bytes, used_bytes, touched_bytes;

        int64_t goal_bytes() const;  // pages are made up to here
    };
    void run();
    Memory *next();

    std::vector<Memory> memories_;
    std::mutex mutex_;
    std::condition_variable work_, idle_;
    std::thread thread_;
    // The memory where a page is being made, if one is, and the end of that page.
    const uint8_t *touched_base_ = nullptr, *touched_end_ = nullptr;
    bool closing_ = false, gentle_ = false;
    double s_per_byte_ = 0;
};

}  // namespace haversack
