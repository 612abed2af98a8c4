#include "readers.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <unistd.h>

namespace haversack {

namespace {

constexpr int64_t PAGE_BYTES = 4096;
constexpr auto LOOK_UP = std::chrono::milliseconds(100);  // how long a wait may be deaf

bool all_done(Read *const *reads, size_t count) {
    return std::all_of(reads, reads + count, [](Read *read) { return read->done(); });
}

bool any_done(Read *const *reads, size_t count) {
    return std::any_of(reads, reads + count, [](Read *read) { return read->done(); });
}

}  // namespace

double now_s() {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
}

double Pace::admit(int64_t num_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_at_s_ = std::max(now_s(), free_at_s_) + num_bytes / bytes_s_;
    return free_at_s_ + latency_s_;
}

Readers::Readers(int num_readers, int num_ahead, ReadInto read_into)
    : num_ahead_(num_ahead), read_into_(read_into) {
    for (int i = 0; i < num_readers; i++) threads_.emplace_back([this] { serve(); });
}

Readers::~Readers() { close(); }

void Readers::add_file(int descriptor, bool direct, Pace *pace) {
    files_.push_back({descriptor, direct, pace});
}

// ------------------------------------------------------------------- requests
void Readers::submit(Read *const *reads, size_t count) {
    if (count == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; i++) (reads[i]->ahead ? ahead_ : demanded_).push_back(reads[i]);
    for (size_t woken = 0; woken < std::min<size_t>(count, idle_); woken++) work_.notify_one();
}

void Readers::demand(Read *const *reads, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; i++) {
        auto place = std::find(ahead_.begin(), ahead_.end(), reads[i]);
        if (place == ahead_.end()) continue;
        ahead_.erase(place);
        reads[i]->ahead = 0;
        demanded_.push_back(reads[i]);
        work_.notify_one();
    }
}

void Readers::cancel_locked(Read *read) {
    if (read->state.load() != WAITING) return;
    auto &queue = read->ahead ? ahead_ : demanded_;
    auto place = std::find(queue.begin(), queue.end(), read);
    if (place != queue.end()) queue.erase(place);
    read->state = CANCELLED;
}

void Readers::cancel(Read *const *reads, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; i++) cancel_locked(reads[i]);
    progress_.notify_all();
}

// -------------------------------------------------------------------- waiting
bool Readers::wait(Read *const *reads, size_t count, bool all, Poll poll) {
    auto met = [=] { return all ? all_done(reads, count) : any_done(reads, count); };
    if (met()) return true;
    double began = now_s();
    std::unique_lock<std::mutex> lock(mutex_);
    bool stopped = false;
    while (!stopped && !met()) {
        if (progress_.wait_for(lock, LOOK_UP) == std::cv_status::timeout && poll) {
            lock.unlock();  // whoever is asked may want the readers itself
            stopped = poll();
            lock.lock();
        }
    }
    counts_.wait_s += now_s() - began;
    return !stopped || met();
}

void Readers::settle(Read *const *reads, size_t count) {
    if (all_done(reads, count)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; i++) cancel_locked(reads[i]);
    progress_.wait(lock, [=] { return all_done(reads, count); });
}

void Readers::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (auto *queue : {&demanded_, &ahead_}) {
        for (Read *read : *queue) read->state = CANCELLED;
        queue->clear();
    }
    progress_.notify_all();
    progress_.wait(lock, [this] { return reading_ == 0; });
}

Counts Readers::counts() {
    std::lock_guard<std::mutex> lock(mutex_);
    counts_.num_ahead = ahead_.size();
    counts_.num_reading = reading_;
    return counts_;
}

// -------------------------------------------------------------------- readers
void Readers::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (Read *read = next(lock)) {
        if (reading_++ == 0) busy_since_ = now_s();
        reading_ahead_ += read->ahead != 0;
        bool was_ahead = read->ahead != 0;
        read->state = READING;
        lock.unlock();
        perform(read);
        lock.lock();
        reading_ahead_ -= was_ahead;
        counts_.bytes_read += read->num_bytes;
        if (--reading_ == 0) counts_.busy_s += now_s() - busy_since_;
        read->state.store(read->error ? FAILED : CAME, std::memory_order_release);
        progress_.notify_all();
    }
}

// The read to begin now; null when the readers close.
Read *Readers::next(std::unique_lock<std::mutex> &lock) {
    while (!closing_) {
        bool may_guess = !ahead_.empty() && reading_ahead_ < num_ahead_;
        if (!demanded_.empty() || may_guess) {
            auto &queue = demanded_.empty() ? ahead_ : demanded_;
            Read *read = queue.front();
            queue.pop_front();
            return read;
        }
        idle_++;
        work_.wait(lock);
        idle_--;
    }
    return nullptr;
}

void Readers::perform(Read *read) {
    const File &file = files_[read->file];
    double there_at_s = file.pace ? file.pace->admit(read->length) : 0;
    if (file.descriptor < 0) {
        if (read_into_(read) != 0) read->error = FOREIGN_ERROR;
    } else if (!fill(file, read)) {
        return;
    }
    if (read->error == 0 && read->from != read->to)
        std::memmove(read->room + read->to, read->room + read->from, read->num_bytes);
    double early_s = there_at_s - now_s();
    if (early_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(early_s));
}

// As DirectFile.read_into in devices/storage.py.
bool Readers::fill(const File &file, Read *read) {
    read->got = 0;
    while (read->got < read->need) {
        // a direct read can only go on from a page's start, so its page is read again
        int64_t start = file.direct ? read->got - read->got % PAGE_BYTES : read->got;
        ssize_t count = pread(file.descriptor, read->room + start, read->length - start,
                              read->offset + start);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) read->error = errno;
        else if (start + count <= read->got) read->error = FILE_ENDED;
        if (read->error) return false;
        read->got = start + count;
    }
    return true;
}

// -------------------------------------------------------------------- closing
void Readers::close() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        for (auto *queue : {&demanded_, &ahead_}) {
            for (Read *read : *queue) read->state = CANCELLED;
            queue->clear();
        }
        work_.notify_all();
        progress_.notify_all();
    }
    for (auto &thread : threads_) thread.join();
    threads_.clear();
}

}  // namespace haversack
