#include "touching.hpp"

#include <algorithm>
#include <chrono>

#include "clock.hpp"
#include "system.hpp"

namespace haversack {

namespace {

// In each memory; each matrix has its own. A prompt leaves processors idle while it waits for reads,
// a decoded token does not: what a prompt leaves to do slows the tokens after it by up to a tenth.
constexpr int64_t AHEAD_BYTES = 1 << 30;
constexpr int64_t STEP_BYTES = 2 << 20;  // a huge page; other threads wait for one step at most

constexpr double PAUSE = 32;  // between two steps, in steps, when it is to be gentle
constexpr double WEIGHT = 1.0 / 16;  // of the latest step

}  // namespace

int64_t Toucher::Memory::goal_bytes() const {
    return used_bytes ? std::min(num_bytes, used_bytes + AHEAD_BYTES) : 0;
}

void Toucher::set_memory(uint8_t *base, int64_t num_bytes) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto known = std::find_if(memories_.begin(), memories_.end(),
                              [base](const Memory &memory) { return memory.base == base; });
    if (known == memories_.end()) {
        memories_.push_back({base, num_bytes, 0, 0});
    } else {
        known->num_bytes = num_bytes;
        known->used_bytes = std::min(known->used_bytes, num_bytes);
        known->touched_bytes = std::min(known->touched_bytes, num_bytes);
    }
    idle_.wait(lock, [this, end = base + num_bytes, base] {
        return touched_base_ != base || touched_end_ <= end;
    });
    if (!thread_.joinable() && !closing_) thread_ = std::thread([this] { run(); });
}

void Toucher::follow(const uint8_t *end) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Memory &memory : memories_) {
        int64_t used_bytes = end - memory.base;
        if (used_bytes <= memory.used_bytes || used_bytes > memory.num_bytes) continue;
        memory.used_bytes = used_bytes;
        work_.notify_one();
    }
}

void Toucher::be_gentle(bool gentle) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (gentle == gentle_) return;
    gentle_ = gentle;
    work_.notify_one();
}

int64_t Toucher::made_bytes(const uint8_t *base) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Memory &memory : memories_)
        if (memory.base == base) return std::max(memory.touched_bytes, memory.used_bytes);
    return 0;
}

double Toucher::s_per_byte() {
    std::lock_guard<std::mutex> lock(mutex_);
    return s_per_byte_;
}

Toucher::Memory *Toucher::next() {
    for (Memory &memory : memories_) {
        memory.touched_bytes = std::max(memory.touched_bytes, memory.used_bytes);
        if (memory.touched_bytes < memory.goal_bytes()) return &memory;
    }
    return nullptr;
}

void Toucher::run() {
    lower_priority();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closing_) {
        Memory *memory = next();
        if (!memory) {
            work_.wait(lock);
            continue;
        }
        int64_t start = memory->touched_bytes / STEP_BYTES * STEP_BYTES;
        int64_t end = std::min(memory->num_bytes, start + STEP_BYTES);
        uint8_t *address = memory->base + start;
        memory->touched_bytes = end;
        touched_base_ = memory->base;
        touched_end_ = memory->base + end;
        lock.unlock();
        const double began_s = now_s();
        bool can = make_pages(address, end - start);
        const double step_s = now_s() - began_s;
        lock.lock();
        touched_base_ = nullptr;
        idle_.notify_all();
        if (!can) return;
        s_per_byte_ += (step_s / (end - start) - s_per_byte_) * (s_per_byte_ > 0 ? WEIGHT : 1);
        const auto pause = std::chrono::duration<double>(PAUSE * step_s);
        work_.wait_for(lock, pause, [this] { return !gentle_ || closing_; });
    }
}

void Toucher::close() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
    }
    work_.notify_one();
    if (thread_.joinable()) thread_.join();
}

}  // namespace haversack
