#include "streamer.hpp"

#include <algorithm>

#include "clock.hpp"

namespace haversack {

namespace {
constexpr int64_t LARGE_BLOCK_BYTES = 4 * 1024 * 1024;  // between them a copy can be given up
}

Streamer::~Streamer() {
    give_up();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ends_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void Streamer::begin(const Layer &layer, const ExpertsGraph &form, const Choice &choice,
                     std::vector<Portion> portions) {
    size_t num_pairs = 0;
    for (const Portion &portion : portions) num_pairs += portion.pairs.size();
    tier_.reserve(form, num_pairs);
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    layer_ = &layer, form_ = &form, choice_ = &choice;
    portions_ = std::move(portions);
    has_failed_ = false;
    is_running_ = true;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        is_busy_ = true;
    }
    changed_.notify_all();
}

bool Streamer::finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !is_busy_; });
    is_running_ = false;
    return !has_failed_;
}

void Streamer::give_up() {
    if (!is_running_) return;
    gives_up_ = true;
    if (!finish()) tier_.has_failed = true;
    gives_up_ = false;
}

void Streamer::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        changed_.wait(lock, [this] { return ends_ || is_busy_; });
        if (ends_) return;
        lock.unlock();
        try {
            compute();
        } catch (...) {  // DeviceError, or no memory
            has_failed_ = true;
        }
        lock.lock();
        is_busy_ = false;
        changed_.notify_all();
    }
}

void Streamer::compute() {
    const size_t first = std::find_if(portions_.begin(), portions_.end(), [](const Portion &one) {
        return one.host_slot != NOWHERE;
    }) - portions_.begin();
    size_t next = first;  // to be copied
    for (size_t at = 0; at < portions_.size(); at++) {
        if (next == at) copy(portions_[next], next - first), next++;
        if (gives_up_) return;
        const Portion &portion = portions_[at];
        if (tier_.has_failed || !tier_.start(*layer_, *form_, *choice_, portion.pairs, portion.slots))
            throw DeviceError{};
        const size_t end = std::max(at, first) + tier_.num_staging;
        if (next < std::min(end, portions_.size())) copy(portions_[next], next - first), next++;
        tier_.wait();
    }
}

// Copy the expert of the portion of that number among those that are copied.
void Streamer::copy(Portion &portion, int32_t number) {
    const int32_t slot = tier_.staging_slot(layer_->pool, number % tier_.num_staging);
    portion.slots.assign(portion.pairs.size(), slot);
    const double began_s = now_s();
    for (int32_t m = 0; m < layer_->num_matrices; m++) {
        if (!form_->uses(m)) continue;
        const Matrix &matrix = layer_->matrices[HIGH][m];
        const uint8_t *from = matrix.in_slot(portion.host_slot);
        for (int64_t at = 0; at < matrix.num_bytes; at += LARGE_BLOCK_BYTES) {
            const int64_t count = std::min(LARGE_BLOCK_BYTES, matrix.num_bytes - at);
            if (gives_up_) return;
            if (!tier_.write(*layer_, m, slot, from + at, at, count)) throw DeviceError{};
        }
    }
    tier_.batch_costs.note_copy(form_->matrix_bytes(*layer_), now_s() - began_s);
}

}  // namespace haversack
