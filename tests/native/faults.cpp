#include "faults.hpp"

#include "fake_ring.hpp"

#include <cerrno>
#include <cstdarg>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>

extern "C" {
ssize_t __real_pread(int file, void *room, size_t length, off_t offset);
void *__real_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset);
long __real_syscall(long number, ...);
}

namespace faults {

namespace {
Answer reads_answer;
}

std::atomic<int> num_threads_left{-1};

void answer_reads(Answer answer) { reads_answer = std::move(answer); }

ssize_t read_truly(int file, void *room, size_t length, off_t offset) {
    const ssize_t count = __real_pread(file, room, length, offset);
    return count < 0 ? -errno : count;
}

ssize_t read(int file, void *room, size_t length, off_t offset) {
    return (reads_answer ? reads_answer : read_truly)(file, room, length, offset);
}

}  // namespace faults

extern "C" ssize_t __wrap_pread(int file, void *room, size_t length, off_t offset) {
    const ssize_t count = faults::read(file, room, length, offset);
    if (count >= 0) return count;
    errno = static_cast<int>(-count);
    return -1;
}

extern "C" void *__wrap_mmap(void *address, size_t length, int protection, int flags, int file,
                             off_t offset) {
    FakeRing *ring = FakeRing::current();
    if (ring && file >= 0 && file == ring->descriptor()) return ring->map(length, offset);
    return __real_mmap(address, length, protection, flags, file, offset);
}

extern "C" long __wrap_syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long given[6] = {};
    const int count = number == SYS_gettid ? 0 : number == SYS_io_uring_setup ? 2 : 6;
    for (int i = 0; i < count; ++i) given[i] = va_arg(rest, long);
    va_end(rest);
    FakeRing *ring = FakeRing::current();
    if (ring && number == SYS_io_uring_setup)
        return ring->setup(reinterpret_cast<io_uring_params *>(given[1]));
    if (ring && number == SYS_io_uring_enter && given[0] == ring->descriptor())
        return ring->enter(static_cast<unsigned>(given[1]), static_cast<unsigned>(given[3]),
                           reinterpret_cast<const void *>(given[4]));
    return __real_syscall(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}

extern "C" int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                              void *(*function)(void *), void *argument) {
    using Create = decltype(&pthread_create);
    static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    if (faults::num_threads_left == 0) return EAGAIN;
    if (faults::num_threads_left > 0) --faults::num_threads_left;
    return create(thread, attributes, function, argument);
}
