// A fiber: a function with a stack of its own, which a thread can leave at any place and enter
// again.
#pragma once

#include <cstddef>
#include <memory>

#if __has_include("stack_watch.hpp")
#include "stack_watch.hpp"  // of tests/native: it tells sanitizers which stack runs
#else
namespace haversack {
struct StackWatch {
    void begin(void *, size_t) {}
    void before_entering() {}
    void after_entering() {}
    void before_leaving() {}
    void after_leaving() {}
};
}  // namespace haversack
#endif

namespace haversack {

class Fiber {
  public:
    // Returns whether fibers work on this processor, because its registers are known here.
    static constexpr bool SUPPORTED =
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
        true;
#else
        false;
#endif

    // Returns null if the system has no memory for the stack. A page counts as memory once used.
    static std::unique_ptr<Fiber> make();
    ~Fiber();

    // Have the next `enter` begin `function(argument)` anew.
    void begin(void (*function)(void *), void *argument);
    // Run the function until it calls `leave` or returns.
    void enter();
    // Return to the caller of `enter`. The function calls this; the next `enter` continues here.
    void leave();

  private:
    explicit Fiber(void *mapping) : mapping_(mapping) {}
    static void main();

    void *mapping_;               // the stack, above an unusable page that stops overflows
    void *stack_ = nullptr;       // stack pointer of the function
    void *thread_stack_ = nullptr;  // stack pointer of the thread when it entered
    void (*function_)(void *) = nullptr;
    void *argument_ = nullptr;
    StackWatch watch_;
};

}  // namespace haversack
