// Tells the sanitizers which stack a thread runs on. Without this the thread sanitizer mixes up the
// calls of two stacks, and the address sanitizer does not know where a fiber's stack ends, which it
// asks when an exception passes. fiber.hpp uses it where it is found.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace haversack {

#if defined(__SANITIZE_ADDRESS__)

class StackWatch {
  public:
    void begin(void *stack, size_t num_bytes) {
        stack_ = stack, num_bytes_ = num_bytes, fiber_frames_ = nullptr;
    }
    void before_entering() { __sanitizer_start_switch_fiber(&thread_frames_, stack_, num_bytes_); }
    void after_entering() {
        __sanitizer_finish_switch_fiber(fiber_frames_, &thread_stack_, &num_thread_bytes_);
    }
    void before_leaving() {
        __sanitizer_start_switch_fiber(&fiber_frames_, thread_stack_, num_thread_bytes_);
    }
    void after_leaving() { __sanitizer_finish_switch_fiber(thread_frames_, nullptr, nullptr); }

  private:
    void *stack_ = nullptr, *fiber_frames_ = nullptr, *thread_frames_ = nullptr;
    const void *thread_stack_ = nullptr;
    size_t num_bytes_ = 0, num_thread_bytes_ = 0;
};

#elif defined(__SANITIZE_THREAD__)

class StackWatch {
  public:
    ~StackWatch() {
        if (fiber_) __tsan_destroy_fiber(fiber_);
    }
    void begin(void *, size_t) {
        if (fiber_) __tsan_destroy_fiber(fiber_);  // its last calls never returned
        fiber_ = __tsan_create_fiber(0);
    }
    void before_entering() {
        thread_ = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(fiber_, 0);
    }
    void after_entering() {}
    void before_leaving() { __tsan_switch_to_fiber(thread_, 0); }
    void after_leaving() {}

  private:
    void *fiber_ = nullptr, *thread_ = nullptr;
};

#else

struct StackWatch {
    void begin(void *, size_t) {}
    void before_entering() {}
    void after_entering() {}
    void before_leaving() {}
    void after_leaving() {}
};

#endif

}  // namespace haversack
