// llama.cpp ends the process where an assertion fails, and throws C++ exceptions through functions
// that Python calls. Inside a Guard both become a message for the caller.
#pragma once

#include <cstdint>
#include <exception>

namespace haversack {

// While one of this thread exists, an abort of llama.cpp is thrown, to be caught where the guard
// stands. Guards may be nested: the innermost counts.
class Guard {
  public:
    Guard();
    ~Guard();
    Guard(const Guard &) = delete;
    Guard &operator=(const Guard &) = delete;

  private:
    void *outer_;  // where on the stack the enclosing guard stands
};

// The owner of the context that llama.cpp makes or computes on this thread now, as the caller named
// it; else null.
extern thread_local void *call_owner;

// Keep why the latest guarded call of this thread failed; see haversack_guard_failure.
void keep_failure(const char *message);
const char *last_failure();

// What `call` returns, or `failed` if llama.cpp gave up in it.
template <class Result, class Call> Result guarded(Result failed, Call call) {
    Guard guard;
    try {
        return call();
    } catch (const std::exception &error) {
        keep_failure(error.what());
    } catch (...) {
        keep_failure("an exception of an unknown kind");
    }
    return failed;
}

}  // namespace haversack
