// What the system answers to the code under test, where a test wants another answer. The calls come
// here first: `pread`, `mmap` and `syscall` by the linker's --wrap, `pthread_create` by its name.
#pragma once

#include <atomic>
#include <functional>
#include <sys/types.h>

namespace faults {

// What a read of a file gives: a number of bytes, which are in `room` then, or -errno.
using Answer = std::function<ssize_t(int file, void *room, size_t length, off_t offset)>;

// From now on reads get this answer; an empty one: the file's own. Not while reads are under way.
void answer_reads(Answer answer);
// The answer to a read, by whatever way it came.
ssize_t read(int file, void *room, size_t length, off_t offset);
// What the file itself says.
ssize_t read_truly(int file, void *room, size_t length, off_t offset);

// So many more threads are granted, then none; negative: as many as are asked for.
extern std::atomic<int> num_threads_left;

}  // namespace faults
