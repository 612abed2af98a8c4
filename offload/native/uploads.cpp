#include "uploads.hpp"

#include <algorithm>
#include <chrono>

namespace haversack {

namespace {
constexpr int64_t BLOCK_BYTES = 128 * 1024;  // 10 us on a link of 12 GB/s
constexpr std::chrono::microseconds PAUSE(20);  // while the device computes and a row waits for it
}

Uploads::~Uploads() {
    give_up();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ends_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void Uploads::submit(const Layer &layer, const Promotion &promotion) {
    Upload &upload = *uploads_.emplace_back(new Upload{&layer, promotion});
    {
        std::lock_guard<std::mutex> lock(mutex_);
        waiting_.push_back(&upload);
    }
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    changed_.notify_all();
}

void Uploads::give_up() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (Upload *upload : waiting_) upload->state = UPLOAD_GIVEN_UP;
    waiting_.clear();
    gives_up_ = true;
    changed_.wait(lock, [this] { return !is_busy_; });
    gives_up_ = false;
}

std::deque<std::unique_ptr<Upload>> Uploads::ended() {
    std::deque<std::unique_ptr<Upload>> found;
    while (!uploads_.empty() && uploads_.front()->state != UPLOAD_WAITING) {
        found.push_back(std::move(uploads_.front()));
        uploads_.pop_front();
    }
    return found;
}

void Uploads::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        changed_.wait(lock, [this] { return ends_ || !waiting_.empty(); });
        if (ends_) return;
        Upload *upload = waiting_.front();
        waiting_.pop_front();
        is_busy_ = true;
        lock.unlock();
        copy(*upload);
        lock.lock();
        is_busy_ = false;
        changed_.notify_all();
    }
}

void Uploads::copy(Upload &upload) {
    const Promotion &promotion = upload.promotion;
    const bool leaves = promotion.leaving != NOWHERE;
    for (int32_t m = 0; m < upload.layer->num_matrices; m++) {
        const Matrix &matrix = upload.layer->matrices[HIGH][m];
        uint8_t *here = matrix.in_slot(leaves ? promotion.left_slot : promotion.host_slot);
        for (int64_t at = 0; at < matrix.num_bytes; at += BLOCK_BYTES) {
            const int64_t count = std::min(BLOCK_BYTES, matrix.num_bytes - at);
            while (tier_.is_computing() && !gives_up_) std::this_thread::sleep_for(PAUSE);
            if (gives_up_ || tier_.has_failed ||
                !(leaves ? tier_.read(*upload.layer, m, promotion.device_slot, here + at, at, count)
                         : tier_.write(*upload.layer, m, promotion.device_slot, here + at, at, count))) {
                upload.state = UPLOAD_GIVEN_UP;
                return;
            }
        }
    }
    upload.state = UPLOADED;
}

}  // namespace haversack
