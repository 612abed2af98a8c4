// Windows' own; see system.hpp. An open file is a descriptor of the C library that Python uses too.
#include "system.hpp"

#include <algorithm>
#include <cerrno>
#include <io.h>
#include <memory>
#include <vector>

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <psapi.h>

#include "overlapped.hpp"

namespace haversack {

namespace {

// Returns the folder that a module's file lies in.
std::wstring folder_of(HMODULE module) {
    std::wstring path(32768, 0);  // the longest that Windows knows
    path.resize(GetModuleFileNameW(module, &path[0], static_cast<DWORD>(path.size())));
    return path.substr(0, path.find_last_of(L"\\/"));
}

std::vector<HMODULE> all_modules() {
    std::vector<HMODULE> modules(1024);
    DWORD num_bytes = 0;
    const DWORD room = static_cast<DWORD>(modules.size() * sizeof(HMODULE));
    if (!EnumProcessModules(GetCurrentProcess(), modules.data(), room, &num_bytes)) return {};
    modules.resize(std::min(room, num_bytes) / sizeof(HMODULE));
    return modules;
}

}  // namespace

int64_t read_at(int file, void *room, int64_t length, int64_t offset) {
    // An event for each thread, because reads of several threads may be under way in one file.
    thread_local const std::unique_ptr<void, decltype(&CloseHandle)> event(
        CreateEventW(nullptr, true, false, nullptr), CloseHandle);
    const auto handle = reinterpret_cast<HANDLE>(_get_osfhandle(file));
    if (handle == INVALID_HANDLE_VALUE) return -EBADF;
    OVERLAPPED place = placed_at(offset);
    // The lowest bit keeps the result from a ring that the file may belong to.
    place.hEvent = reinterpret_cast<HANDLE>(reinterpret_cast<uintptr_t>(event.get()) | 1);
    const DWORD wanted = static_cast<DWORD>(std::min(length, MOST_BYTES));
    DWORD count = 0;
    bool done = ReadFile(handle, room, wanted, nullptr, &place);
    if (done || GetLastError() == ERROR_IO_PENDING)
        done = GetOverlappedResult(handle, &place, &count, true);
    return done ? count : -errno_of(GetLastError());
}

int errno_of(DWORD error) {
    switch (error) {
        case ERROR_HANDLE_EOF: return 0;  // no byte came, which is no failure
        case ERROR_INVALID_HANDLE: return EBADF;
        case ERROR_INVALID_PARAMETER: return EINVAL;
        case ERROR_ACCESS_DENIED: return EACCES;
        case ERROR_NOT_ENOUGH_MEMORY:
        case ERROR_WORKING_SET_QUOTA:
        case ERROR_NO_SYSTEM_RESOURCES: return ENOMEM;
        default: return EIO;
    }
}

void *reserve_addresses(size_t num_bytes) {
    return VirtualAlloc(nullptr, num_bytes, MEM_RESERVE, PAGE_NOACCESS);
}

void *foreign_memory(size_t num_bytes) {
    return VirtualAlloc(nullptr, num_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void release_addresses(void *address, size_t) { VirtualFree(address, 0, MEM_RELEASE); }

bool make_pages(uint8_t *, int64_t) { return false; }

void prefer_huge_pages(void *, size_t) {}

void lower_priority() { SetThreadPriority(GetCurrentThread(), THREAD_PRIORITY_IDLE); }

int start_thread(int64_t stack_bytes, void (*function)(void *), void *argument) {
    struct Work {
        void (*function)(void *);
        void *argument;
    };
    std::unique_ptr<Work> work(new Work{function, argument});
    const auto run = [](void *given) -> DWORD {
        const std::unique_ptr<Work> taken(static_cast<Work *>(given));
        taken->function(taken->argument);
        return 0;
    };
    const HANDLE thread = CreateThread(nullptr, static_cast<size_t>(stack_bytes), run, work.get(),
                                       STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!thread) return EAGAIN;
    work.release();  // it is the thread's
    CloseHandle(thread);
    return 0;
}

void watch_stack() {}
int64_t used_stack_bytes() { return 0; }

void *library_of(const void *function) {
    constexpr DWORD FLAGS =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    HMODULE module = nullptr;
    return GetModuleHandleExW(FLAGS, static_cast<LPCWSTR>(function), &module) ? module : nullptr;
}

// Windows does not search the libraries that a library needs. Those of llama.cpp lie beside it.
void *function_of(void *library, const char *name) {
    const std::wstring folder = folder_of(static_cast<HMODULE>(library));
    for (HMODULE module : all_modules()) {
        FARPROC function = GetProcAddress(module, name);
        if (function && folder_of(module) == folder) return reinterpret_cast<void *>(function);
    }
    return nullptr;
}

// Frames of another compiler run no destructors for an exception of ours.
bool may_throw_to(const void *) { return false; }

}  // namespace haversack
