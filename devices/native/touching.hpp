// Makes the pages of slots before reads land there: a huge page's making costs up to 5 ms, which
// the thread that starts a read would spend. Empty slots are used in ascending order, so a thread
// of low priority stays a bounded distance ahead of the highest place that a read went to.
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
    // The first `num_bytes` from `base` on may be touched. Returns when no page beyond is being
    // made, so the caller may then take memory away.
    void set_memory(uint8_t *base, int64_t num_bytes);
    // A read goes to the bytes that end at `end`.
    void follow(const uint8_t *end);
    void close();

  private:
    struct Memory {
        uint8_t *base;
        int64_t num_bytes, used_bytes, touched_bytes;

        int64_t goal_bytes() const;  // up to where pages are to be there
    };
    void run();
    Memory *next();

    std::vector<Memory> memories_;
    std::mutex mutex_;
    std::condition_variable work_, idle_;
    std::thread thread_;
    bool touching_ = false, closing_ = false;
};

}  // namespace haversack
