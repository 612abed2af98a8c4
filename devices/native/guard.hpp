// llama.cpp ends the process if an assertion fails, and throws C++ exceptions through functions
// that Python calls. Inside a Guard both become a message for the caller.
#pragma once

#include <cxxabi.h>
#include <exception>

#if defined(__linux__) && !defined(__GLIBCXX__)
// The compiler has another standard library than the process (see theirs.hpp). libstdc++ has this
// one's destructor, and so the type's name.
namespace __cxxabiv1 {
class __forced_unwind {
    virtual ~__forced_unwind() noexcept;
    virtual void __pure_dummy() = 0;
};
}  // namespace __cxxabiv1
#endif

namespace haversack {

// While a Guard exists in a thread, an abort of llama.cpp in it becomes an exception, which the
// code with the Guard catches. Guards may be nested: the innermost counts.
class Guard {
  public:
    Guard();
    ~Guard();
    Guard(const Guard &) = delete;
    Guard &operator=(const Guard &) = delete;

  private:
    void *outer_;  // stack address of the enclosing guard
};

// The owner, named by the caller, of the context that llama.cpp makes or computes on this thread
// now; null outside such calls.
extern thread_local void *call_owner;

// The seconds in which the owner did not compute on this thread but waited, since it began.
extern thread_local double owner_waited_s;

// Names the owner during a call.
class Owned {
  public:
    explicit Owned(void *owner) : outer_(call_owner) { call_owner = owner; }
    ~Owned() { call_owner = outer_; }

  private:
    void *const outer_;
};

// Keep why the latest guarded call of this thread failed; see haversack_guard_failure.
void keep_failure(const char *message);
const char *last_failure();

// Returns the result of `call`, or `failed` if llama.cpp gave up in it.
template <class Result, class Call> Result guarded(Result failed, Call call) {
    Guard guard;
    try {
        return call();
    } catch (const std::exception &error) {
        keep_failure(error.what());
#if defined(__linux__)
    } catch (const abi::__forced_unwind &) {  // the thread ends, as Python's do when it exits
        throw;
#endif
    } catch (...) {
        keep_failure("an exception of an unknown kind");
    }
    return failed;
}

}  // namespace haversack
