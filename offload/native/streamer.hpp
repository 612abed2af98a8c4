// A layer of a batch on a device, in a thread of its own. The thread copies experts from the host into the
// device's staging slots, each while the one before it is computed there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "device_tier.hpp"

namespace haversack {

// What a device computes at once: pairs, and where the expert of each lies there. An expert that is
// copied before from `host_slot` has all pairs.
struct Portion {
    std::vector<int32_t> pairs, slots;
    int32_t host_slot = NOWHERE;
};

class Streamer {
  public:
    explicit Streamer(DeviceTier &tier) : tier_(tier) {}
    ~Streamer();
    Streamer(const Streamer &) = delete;

    // Begin with portions, those that are copied at the end. What is given stays as it is until all is done.
    void begin(const Layer &layer, const ExpertsGraph &form, const Choice &choice,
               std::vector<Portion> portions);
    // Whether it was begun and not ended by one of the next two.
    bool is_running() const { return is_running_; }
    // Return when the results are there. Returns false if the device failed.
    bool finish();
    // Return when nothing is under way any more.
    void give_up();

  private:
    void work();
    void compute();
    void copy(Portion &portion, int32_t number);

    DeviceTier &tier_;
    const Layer *layer_ = nullptr;
    const ExpertsGraph *form_ = nullptr;
    const Choice *choice_ = nullptr;
    std::vector<Portion> portions_;
    bool is_running_ = false, has_failed_ = false;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool is_busy_ = false, ends_ = false;
    std::atomic<bool> gives_up_{false};
    std::thread thread_;  // it begins with the first layer
};

}  // namespace haversack
