// What Linux and macOS share; see system.hpp.
#include "system.hpp"

#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>
#include <memory>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unwind.h>

namespace haversack {

namespace {

bool is_ours(const char *path) {
    const char *slash = std::strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (const char *library :
         {"libggml", "libllama", "xllamacpp", "libhaversack", "libstdc++", "libc++"})
        if (std::strncmp(name, library, std::strlen(library)) == 0) return true;
    return false;
}

struct Walk {
    const void *guard;
    bool reached, crosses_others;
};

// An exception may only pass code that expects one or that has no state to restore. An interpreter
// or a team of threads in between would be left in the middle of a step.
_Unwind_Reason_Code step(_Unwind_Context *context, void *data) {
    auto *walk = static_cast<Walk *>(data);
    if (reinterpret_cast<void *>(_Unwind_GetCFA(context)) > walk->guard) {
        walk->reached = true;
        return _URC_END_OF_STACK;
    }
    Dl_info found;
    const bool known = dladdr(reinterpret_cast<void *>(_Unwind_GetIP(context)), &found) != 0;
    const char *path = known && found.dli_fname != nullptr ? found.dli_fname : "";
    if (!is_ours(path)) {
        walk->crosses_others = true;
        return _URC_END_OF_STACK;
    }
    return _URC_NO_REASON;
}

}  // namespace

bool may_throw_to(const void *guard) {
    Walk walk{guard, false, false};
    _Unwind_Backtrace(step, &walk);
    return walk.reached && !walk.crosses_others;
}

int64_t read_at(int file, void *room, int64_t length, int64_t offset) {
    for (;;) {
        const ssize_t count = pread(file, room, length, offset);
        if (count >= 0) return count;
        if (errno != EINTR) return -errno;
    }
}

void *reserve_addresses(size_t num_bytes) {
    constexpr int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *address = mmap(nullptr, num_bytes, PROT_NONE, FLAGS, -1, 0);
    return address == MAP_FAILED ? nullptr : address;
}

void *foreign_memory(size_t num_bytes) {
    constexpr int FLAGS = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    void *address = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, FLAGS, -1, 0);
    return address == MAP_FAILED ? nullptr : address;
}

void release_addresses(void *address, size_t num_bytes) { munmap(address, num_bytes); }

int start_thread(int64_t stack_bytes, void (*function)(void *), void *argument) {
    struct Work {
        void (*function)(void *);
        void *argument;
    };
    std::unique_ptr<Work> work(new Work{function, argument});
    const auto run = [](void *given) -> void * {
        const std::unique_ptr<Work> taken(static_cast<Work *>(given));
        taken->function(taken->argument);
        return nullptr;
    };
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int error = pthread_attr_setstacksize(&attributes, static_cast<size_t>(stack_bytes));
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    if (error == 0) error = pthread_create(&thread, &attributes, run, work.get());
    pthread_attr_destroy(&attributes);
    if (error == 0) work.release();  // it is the thread's
    return error;
}

void *library_of(const void *function) {
    Dl_info info;
    if (dladdr(function, &info) == 0) return nullptr;
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

void *function_of(void *library, const char *name) { return dlsym(library, name); }

}  // namespace haversack
