#include "ring.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <system_error>

#include "clock.hpp"
#include "system.hpp"

namespace haversack {

namespace {

constexpr int64_t PAGE_BYTES = 4096;
constexpr std::chrono::duration<double> LOOK_UP(0.1);  // between two calls of `poll`

// Where a read continues. A direct read must begin at a page, so the last page is read again.
int64_t go_on_from(const Read *read, bool direct) {
    return direct ? read->got - read->got % PAGE_BYTES : read->got;
}

// Note that `count` bytes came at `start` of the room, or that the read failed with -errno.
void note(Read *read, int64_t start, int64_t count) {
    if (count < 0) read->error = -count;
    else if (start + count <= read->got) read->error = FILE_ENDED;
    else read->got = start + count;
}

bool has_to_move(const Read *read) { return read->error == 0 && read->from != read->to; }

// Move the wanted bytes to their place.
void move(Read *read) {
    if (has_to_move(read))
        std::memmove(read->room + read->to, read->room + read->from, read->num_bytes);
}

bool all_done(Read *const *reads, size_t count) {
    return std::all_of(reads, reads + count, [](Read *read) { return read->done(); });
}

bool any_done(Read *const *reads, size_t count) {
    return std::any_of(reads, reads + count, [](Read *read) { return read->done(); });
}

}  // namespace

double Pace::admit(int64_t num_bytes, double earliest_s) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_at_s_ = std::max({now_s(), free_at_s_, earliest_s}) + num_bytes / bytes_s_;
    return free_at_s_ + latency_s_;
}

Readers::Readers(int num_readers, int num_ahead, ReadInto read_into, bool with_ring)
    : num_readers_(num_readers), num_ahead_(num_ahead), read_into_(read_into) {
    if (with_ring) ring_ = Ring::open();
    try {
        for (int i = 0; i < (ring_ ? 1 : num_readers); i++)
            threads_.emplace_back([this] { ring_ ? reap() : serve(); });
    } catch (const std::system_error &) {
        if (threads_.empty()) throw;  // fewer threads can read too
    }
}

Readers::~Readers() { close(); }

void Readers::add_file(int descriptor, bool direct, Pace *pace) {
    files_.push_back({descriptor, direct, pace});
}

// ------------------------------------------------------------------- requests
void Readers::submit(Read *const *reads, size_t count) {
    if (count == 0) return;
    for (size_t i = 0; i < count; i++) toucher_.follow(reads[i]->room + reads[i]->length);
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < count; i++) {
        if (closing_) reads[i]->state = CANCELLED;
        else (reads[i]->ahead ? ahead_ : demanded_).push_back(reads[i]);
    }
    feed();
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
    feed();
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
    double began = now_s(), looked_up = began;
    std::unique_lock<std::mutex> lock(mutex_);
    bool stopped = false;
    while (!stopped && !met()) {
        progress_.wait_for(lock, LOOK_UP);  // other reads that are done wake it too
        if (met() || !poll || now_s() - looked_up < LOOK_UP.count()) continue;
        lock.unlock();  // `poll` may call the readers
        stopped = poll();
        lock.lock();
        looked_up = now_s();
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
    progress_.wait(lock, [this] { return reading_ == 0 && moving_ == 0; });
}

bool Readers::pages_are_dear() { return toucher_.s_per_byte() > s_per_byte(); }

double Readers::s_per_byte() {
    const Counts found = counts();
    return found.bytes_read ? found.busy_s / found.bytes_read : std::numeric_limits<double>::infinity();
}

Counts Readers::counts() {
    std::lock_guard<std::mutex> lock(mutex_);
    counts_.num_ahead = ahead_.size();
    counts_.num_reading = reading_ + moving_;
    return counts_;
}

// -------------------------------------------------------------------- reading
// Returns the read to begin now; null if there is none.
Read *Readers::next() {
    bool may_prefetch = !ahead_.empty() && reading_ahead_ < num_ahead_;
    if (closing_ || (demanded_.empty() && !may_prefetch)) return nullptr;
    auto &queue = demanded_.empty() ? ahead_ : demanded_;
    Read *read = queue.front();
    queue.pop_front();
    return read;
}

void Readers::begin(Read *read) {
    if (reading_++ == 0) busy_since_ = now_s();
    reading_ahead_ += read->ahead != 0;
    read->state = READING;
    Pace *pace = files_[read->file].pace;
    read->due_s = pace ? pace->admit(read->length) : 0;
}

// Note that a read left the drive, so that another may begin. This one is not done yet.
void Readers::leave_drive(Read *read) {
    reading_ahead_ -= read->ahead != 0;
    if (--reading_ == 0) counts_.busy_s += now_s() - busy_since_;
    moving_++;
}

// Note that a read is done. The caller may free it from now on.
void Readers::finish(Read *read) {
    moving_--;
    if (!read->error) counts_.bytes_read += read->num_bytes;
    read->state.store(read->error ? FAILED : CAME, std::memory_order_release);
    progress_.notify_all();
}

// ----------------------------------------------------------------- by threads
void Readers::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closing_) {
        Read *read = next();
        if (!read) {
            idle_++;
            work_.wait(lock);
            idle_--;
            continue;
        }
        begin(read);
        lock.unlock();
        perform(read);
        lock.lock();
        leave_drive(read);
        finish(read);
    }
}

void Readers::perform(Read *read) {
    const File &file = files_[read->file];
    const bool copies = !file.pace || file.pace->copies;
    if (file.descriptor < 0) {
        if (read_into_(read) != 0) read->error = FOREIGN_ERROR;
    } else if (copies && !fill(file, read)) {
        return;
    }
    if (copies) move(read);
    double early_s = read->due_s - now_s();
    if (early_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(early_s));
}

// Reads as DirectFile.read_into in devices/storage.py does.
bool Readers::fill(const File &file, Read *read) {
    while (read->got < read->need) {
        int64_t start = go_on_from(read, file.direct);
        note(read, start, read_at(file.descriptor, read->room + start, read->length - start,
                                  read->offset + start));
        if (read->error) return false;
    }
    return true;
}

// ------------------------------------------------------------------ by a ring
// Hand over the reads that may begin, one by one: of several at once, the kernel would begin the
// one with the lowest offset first.
void Readers::feed() {
    if (!ring_) return;
    while (ring_->flush() && reading_ < num_readers_ && !ring_->full()) {
        Read *read = next();
        if (!read) break;
        begin(read);
        ring_->push(read, files_[read->file].descriptor, 0);
    }
}

// Run the ring's only thread. It moves bytes without the lock, so that other threads can hand over
// reads meanwhile. After each move it takes the reads that came, so that the drive stays busy.
void Readers::reap() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closing_ || reading_ > 0 || moving_ > 0) {
        take_those_that_came();
        double most_s = finish_those_due();
        feed();
        if (!arrived_.empty()) {
            settle_one(lock);
            continue;
        }
        lock.unlock();
        ring_->sleep(most_s);
        lock.lock();
    }
}

void Readers::take_those_that_came() {
    int64_t result;
    while (Read *read = ring_->pop(&result)) {
        if (!take(read, result)) continue;
        if (read->due_s == 0) leave_drive(read);  // a read of a paced file leaves when it is due
        arrived_.push_back(read);
    }
}

// Move the bytes of the first read that arrived to their place. Until it is done, no other thread
// uses the read or its room, so the move needs no lock.
void Readers::settle_one(std::unique_lock<std::mutex> &lock) {
    Read *read = arrived_.front();
    arrived_.pop_front();
    if (has_to_move(read)) {
        lock.unlock();
        move(read);
        lock.lock();
    }
    if (read->due_s == 0) finish(read);
    else early_.push_back(read);
}

// Note the result of a read. Returns whether it is complete; if not, asks for the rest.
bool Readers::take(Read *read, int64_t result) {
    const File &file = files_[read->file];
    int64_t start = go_on_from(read, file.direct);
    if (result != -EINTR && result != -EAGAIN && result != -ECANCELED) note(read, start, result);
    if (read->error || read->got >= read->need) return true;
    ring_->push(read, file.descriptor, go_on_from(read, file.direct));
    return false;
}

// Finish the reads of paced files that are due. Returns the time until the next one is due.
double Readers::finish_those_due() {
    double now = now_s(), next_s = now + LOOK_UP.count();
    auto is_due = [&](Read *read) {
        if (read->due_s > now && !read->error) {
            next_s = std::min(next_s, read->due_s);
            return false;
        }
        leave_drive(read);
        finish(read);
        return true;
    };
    early_.erase(std::remove_if(early_.begin(), early_.end(), is_due), early_.end());
    return next_s - now;
}

// -------------------------------------------------------------------- closing
void Readers::close() {
    std::lock_guard<std::mutex> one(close_mutex_);  // a second call waits for the threads too
    toucher_.close();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        for (auto *queue : {&demanded_, &ahead_}) {
            for (Read *read : *queue) read->state = CANCELLED;
            queue->clear();
        }
        work_.notify_all();
        progress_.notify_all();
        if (ring_ && !threads_.empty()) ring_->wake();
    }
    for (auto &thread : threads_) thread.join();
    threads_.clear();
}

}  // namespace haversack
