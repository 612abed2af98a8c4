// A fiber: a function with a stack of its own, which a thread enters and leaves where it likes.
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
    // Whether this processor's registers are known here; nothing else of the class works elsewhere.
    static constexpr bool SUPPORTED =
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
        true;
#else
        false;
#endif

    // Null where the system has no memory for the stack. A page counts as memory once it is used.
    static std::unique_ptr<Fiber> make();
    ~Fiber();

    // Have the next `enter` begin `function(argument)` anew.
    void begin(void (*function)(void *), void *argument);
    // Run the function until it calls `leave` or returns.
    void enter();
    // Called by the function: go back to `enter`, which goes on here when it is called again.
    void leave();

  private:
    explicit Fiber(void *mapping) : mapping_(mapping) {}
    static void main();

    void *mapping_;               // the stack, above a page that stops it from growing further
    void *stack_ = nullptr;       // where the function stands
    void *thread_stack_ = nullptr;  // where the thread stood when it entered
    void (*function_)(void *) = nullptr;
    void *argument_ = nullptr;
    StackWatch watch_;
};

}  // namespace haversack
