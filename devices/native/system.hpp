// What only the operating system can do. Each system has these functions in files of its own:
// system_unix.cpp with system_linux.cpp or system_darwin.cpp, and system_windows.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace haversack {

// Read up to `length` bytes at `offset` of an open file. Returns how many came, or -errno.
int64_t read_at(int file, void *room, int64_t length, int64_t offset);

// Addresses without memory: reading or writing there crashes. Returns null if there are none.
void *reserve_addresses(size_t num_bytes);
void release_addresses(void *address, size_t num_bytes);
// Memory of zeros that, on Linux, is not counted as anonymous: it stands for another device's. Returns
// null if there is none; `release_addresses` gives it back.
void *foreign_memory(size_t num_bytes);

// Make the pages as if they were written to, without changing their bytes. Returns false if the
// system cannot.
bool make_pages(uint8_t *address, int64_t num_bytes);

// Have the system use huge pages for this memory where it can. Nothing else changes.
void prefer_huge_pages(void *address, size_t num_bytes);

// Have the calling thread run only when no other thread needs the processor.
void lower_priority();

// Run `function(argument)` on a new thread with such a stack. Returns 0 or errno.
int start_thread(int64_t stack_bytes, void (*function)(void *), void *argument);
// Such a thread calls these at its begin and its end: the second returns how much of its stack was
// used in between; 0 if that is not known.
void watch_stack();
int64_t used_stack_bytes();

// A handle to the library that `function` lies in; null if none is known.
void *library_of(const void *function);
// Returns a function of that library or of those that it needs; null if none has that name.
void *function_of(void *library, const char *name);

// Returns whether an exception may be thrown here and caught in the frame of `guard`, an address on
// this thread's stack: whether all frames in between belong to libraries that let one pass.
bool may_throw_to(const void *guard);

}  // namespace haversack
