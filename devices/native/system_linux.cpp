// Linux's own; see system.hpp.
#include "system.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

namespace haversack {

namespace {

struct Stack {
    void *lowest = nullptr;
    size_t num_bytes = 0;  // 0 where it is not known

    Stack() {
        pthread_attr_t attributes;
        if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
        pthread_attr_getstack(&attributes, &lowest, &num_bytes);
        pthread_attr_destroy(&attributes);
    }
};

}  // namespace

bool make_pages(uint8_t *address, int64_t num_bytes) {
    constexpr int POPULATE_WRITE = 23;  // MADV_POPULATE_WRITE, of Linux 5.14 and later
    return madvise(address, num_bytes, POPULATE_WRITE) == 0;
}

// The system wants whole pages; those at both ends belong to others too.
void prefer_huge_pages(void *address, size_t num_bytes) {
    const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(address);
    const uintptr_t first = (begin + page_bytes - 1) & ~(page_bytes - 1);
    const uintptr_t end = (begin + num_bytes) & ~(page_bytes - 1);
    if (first < end) madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE);
}

// A tenth of a thread that computes. Lower, a thread that makes a page while it is preempted by busy
// programs holds up those that wait for it, and the lock of the process's addresses, for seconds.
void lower_priority() { setpriority(PRIO_PROCESS, syscall(SYS_gettid), 10); }

// Forbids huge pages, so that `used_stack_bytes` does not count 2 MiB for each byte used.
void watch_stack() {
    const Stack stack;
    if (stack.num_bytes) madvise(stack.lowest, stack.num_bytes, MADV_NOHUGEPAGE);
}

int64_t used_stack_bytes() {
    const Stack stack;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> resident(stack.num_bytes / page);
    if (mincore(stack.lowest, resident.size() * page, resident.data()) != 0) return 0;
    size_t first = 0;
    while (first < resident.size() && (resident[first] & 1) == 0) ++first;
    return static_cast<int64_t>((resident.size() - first) * page);
}

}  // namespace haversack
