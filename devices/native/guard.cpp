// Calls of llama.cpp that survive when it gives up, and the end of the process where one cannot.
#include "guard.hpp"

#include "pass.hpp"
#include "system.hpp"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include <unistd.h>

#define API extern "C" __attribute__((visibility("default")))

namespace haversack {
namespace {

using AbortCallback = void (*)(const char *message);

thread_local void *innermost = nullptr;  // stack address of this thread's innermost guard
thread_local std::string failure;
thread_local bool has_failed = false;
int abort_exit_code = -1;  // for programs that end with a line; -1: the process is aborted
std::mutex advice_mutex;   // guards `advice`
std::string advice;        // what to do where a device may be the reason

class GaveUp : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Returns the first line of an abort's message, with its source file's name without folders.
std::string first_line(const char *message) {
    std::string line(message, std::strcspn(message, "\n"));
    const size_t end = line.find(':');
    const size_t slash = end == std::string::npos ? end : line.rfind('/', end);
    return slash == std::string::npos ? line : line.substr(slash + 1);
}

std::string with_advice(const std::string &reason) {
    const std::lock_guard<std::mutex> lock(advice_mutex);
    return reason + advice;
}

bool may_throw() {
    // With a team, other ranks would wait for ever.
    return innermost != nullptr && current_rank == nullptr && may_throw_to(innermost);
}

void write_line(const std::string &reason) {
    const std::string line = "haversack: llama.cpp gave up: " + reason + "\n";
    const auto written = write(STDERR_FILENO, line.data(), line.size());
    static_cast<void>(written);  // a failed write cannot be reported
}

// ggml_abort calls this, and aborts the process where it returns.
void on_abort(const char *message) {
    const std::string reason = with_advice(first_line(message));
    if (may_throw()) {
        throw GaveUp(reason);
    }
    write_line(reason);
    if (abort_exit_code >= 0) {
        _exit(abort_exit_code);
    }
}

[[noreturn]] void on_terminate() {
    try {
        if (abi::__cxa_current_exception_type() != nullptr) throw;
        write_line("an exception could not be handled");
    } catch (const GaveUp &error) {
        write_line(error.what());
    } catch (const std::exception &error) {
        write_line(with_advice(error.what()));
    } catch (...) {
        write_line("an exception of an unknown kind");
    }
    _exit(abort_exit_code);
}

}  // namespace

Guard::Guard() : outer_(innermost) {
    innermost = this;  // on the stack above all that is called while it exists
    has_failed = false;
}
Guard::~Guard() { innermost = outer_; }

void keep_failure(const char *message) {
    failure = message;
    has_failed = true;
}

const char *last_failure() { return failure.c_str(); }

thread_local void *call_owner = nullptr;
thread_local double owner_waited_s = 0;

}  // namespace haversack

using namespace haversack;

// Structures that llama.h passes by value. With more than two words, only their size matters.
template <int num_words> struct ByValue {
    int64_t words[num_words];
};
using ModelParams = ByValue<10>;  // struct llama_model_params
// struct llama_context_params, without and with `moe_cache_size`
using ContextParams = ByValue<20>;
using LongContextParams = ByValue<21>;

// ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback)
API void haversack_guard_install(AbortCallback (*set_abort_callback)(AbortCallback)) {
    set_abort_callback(on_abort);
}
API void haversack_guard_end_process(int exit_code) {
    abort_exit_code = exit_code;
    std::set_terminate(on_terminate);
}
// Has `text` follow the reason wherever llama.cpp gives up from now on.
API void haversack_guard_advise(const char *text) {
    const std::lock_guard<std::mutex> lock(advice_mutex);
    advice = text;
}
// Returns why this thread's latest guarded call failed; null if it did not.
API const char *haversack_guard_failure() { return has_failed ? failure.c_str() : nullptr; }
API void haversack_guard_sizes(int64_t *sizes) {
    sizes[0] = sizeof(ModelParams), sizes[1] = sizeof(Batch);
    sizes[2] = sizeof(ContextParams), sizes[3] = sizeof(LongContextParams);
}

API void *haversack_guard_load_model(void *(*load)(const char *, ModelParams), const char *path,
                                     const ModelParams *params) {
    return guarded<void *>(nullptr, [&] { return load(path, *params); });
}
template <class Params> void *init_context(const void *init, void *model, const void *params) {
    const auto function = reinterpret_cast<void *(*)(void *, Params)>(const_cast<void *>(init));
    return function(model, *static_cast<const Params *>(params));
}
API void *haversack_guard_init_context(const void *init, void *model, const void *params,
                                       int64_t params_bytes, void *owner) {
    Owned owned(owner);
    return guarded<void *>(nullptr, [&] {
        return params_bytes == sizeof(ContextParams)
                   ? init_context<ContextParams>(init, model, params)
                   : init_context<LongContextParams>(init, model, params);
    });
}
API int32_t haversack_guard_piece(int32_t (*piece)(const void *, int32_t, char *, int32_t, int32_t,
                                                   bool),
                                  const void *vocab, int32_t token, char *buffer, int32_t length,
                                  bool special) {
    return guarded<int32_t>(0, [&] { return piece(vocab, token, buffer, length, 0, special); });
}
API void haversack_guard_apply(void (*apply)(void *, void *), void *sampler, void *candidates) {
    guarded<int>(0, [&] { return apply(sampler, candidates), 0; });
}
API void haversack_guard_accept(void (*accept)(void *, int32_t), void *sampler, int32_t token) {
    guarded<int>(0, [&] { return accept(sampler, token), 0; });
}
