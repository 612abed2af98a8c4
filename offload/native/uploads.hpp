// Copies of experts on their way to a device, or from it to the host where one leaves for another, in a
// thread of its own. They go in blocks, between which they can be given up: that takes one block at most.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "device_tier.hpp"
#include "promotions.hpp"

namespace haversack {

enum UploadState : int32_t { UPLOAD_WAITING, UPLOADED, UPLOAD_GIVEN_UP };

struct Upload {
    const Layer *layer;  // of the expert whose bytes are copied
    Promotion promotion;
    std::atomic<int32_t> state{UPLOAD_WAITING};
};

class Uploads {
  public:
    explicit Uploads(DeviceTier &tier) : tier_(tier) {}
    ~Uploads();
    Uploads(const Uploads &) = delete;

    void submit(const Layer &layer, const Promotion &promotion);
    // Return when none is under way any more; those that are not done are given up.
    void give_up();
    // Take out those that have ended, in the order they were submitted.
    std::deque<std::unique_ptr<Upload>> ended();
    const std::deque<std::unique_ptr<Upload>> &under_way() const { return uploads_; }

  private:
    void work();
    void copy(Upload &upload);

    DeviceTier &tier_;
    std::deque<std::unique_ptr<Upload>> uploads_;  // not taken out yet; the owner's alone
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Upload *> waiting_;
    bool is_busy_ = false, ends_ = false;
    std::atomic<bool> gives_up_{false};
    std::thread thread_;  // it begins with the first upload
};

}  // namespace haversack
