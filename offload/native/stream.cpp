#include "stream.hpp"

#include <algorithm>

#include "clock.hpp"

namespace haversack {

namespace {

constexpr double SLEEP_IS_LATE_S = 100e-6;  // a thread that sleeps may wake up so much later

}  // namespace

void wait_until(double moment_s) {
    const double left_s = moment_s - now_s() - SLEEP_IS_LATE_S;
    if (left_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(left_s));
    while (now_s() < moment_s) std::this_thread::yield();
}

Stream::Stream() : thread_([this] { run(); }) {}

Stream::~Stream() {
    {
        std::lock_guard<std::mutex> lock(progress_->mutex);
        closing_ = true;
    }
    progress_->changed.notify_all();
    thread_.join();
}

void Stream::add(std::function<void()> work, Pace &pace, int64_t num_bytes, bool is_short) {
    due_s_ = pace.admit(num_bytes, due_s_);
    bool is_idle = false;
    if (is_short) {
        std::lock_guard<std::mutex> lock(progress_->mutex);
        is_idle = progress_->done == progress_->added;
    }
    if (is_idle) work();
    else queue(std::move(work));
}

void Stream::queue(std::function<void()> work) {
    {
        std::lock_guard<std::mutex> lock(progress_->mutex);
        queue_.push_back(std::move(work));
        progress_->added++;
    }
    progress_->changed.notify_all();
}

void Stream::begin_after(const Moment &moment) {
    due_s_ = std::max(due_s_, moment.due_s);
    if (!moment.progress || moment.progress == progress_) return;
    queue([moment] {
        std::unique_lock<std::mutex> lock(moment.progress->mutex);
        moment.progress->changed.wait(lock, [&] { return moment.progress->done >= moment.added; });
    });
}

Stream::Moment Stream::now() {
    std::lock_guard<std::mutex> lock(progress_->mutex);
    return {progress_, progress_->added, due_s_};
}

void Stream::Moment::wait() const {
    if (!progress) return;
    {
        std::unique_lock<std::mutex> lock(progress->mutex);
        progress->changed.wait(lock, [&] { return progress->done >= added; });
    }
    wait_until(due_s);
}

double Stream::synchronize() {
    const double began_s = now_s();
    now().wait();
    return std::max(0.0, now_s() - std::max(began_s, due_s_));
}

void Stream::run() {
    std::unique_lock<std::mutex> lock(progress_->mutex);
    for (;;) {
        progress_->changed.wait(lock, [&] { return closing_ || !queue_.empty(); });
        if (queue_.empty()) return;
        const std::function<void()> work = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        work();
        lock.lock();
        progress_->done++;
        progress_->changed.notify_all();
    }
}

}  // namespace haversack
