// A stream of the simulated device: work that is done in order, on a thread of its own. Beside the work
// stands the clock of the device that is simulated: a caller that waits, waits for both.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "readers.hpp"

namespace haversack {

// Return at that moment of `now_s`.
void wait_until(double moment_s);

class Stream {
    struct Progress {
        std::mutex mutex;
        std::condition_variable changed;
        int64_t added = 0, done = 0;  // pieces of work
    };

  public:
    // A moment between two pieces of work of a stream; it may outlive the stream.
    struct Moment {
        std::shared_ptr<Progress> progress;
        int64_t added = 0;
        double due_s = 0;

        // Return when the work before it is done, not before the clock says so.
        void wait() const;
    };

    Stream();
    ~Stream();  // returns when all work is done
    Stream(const Stream &) = delete;

    // Queue work that takes the simulated device as long as `pace` needs for `num_bytes`. If `is_short`
    // and nothing is queued, it is done on this thread at once.
    void add(std::function<void()> work, Pace &pace, int64_t num_bytes, bool is_short);
    // Have the work that is added from now on begin after a moment of another stream.
    void begin_after(const Moment &moment);
    Moment now();
    // Return when all work is done, not before the clock says so. Returns the seconds that this took
    // longer than the simulated device would have.
    double synchronize();

  private:
    void queue(std::function<void()> work);
    void run();

    std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
    std::deque<std::function<void()>> queue_;
    bool closing_ = false;
    double due_s_ = 0;  // when the simulated device is done with all that was added
    std::thread thread_;
};

}  // namespace haversack
