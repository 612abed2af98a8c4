// What libstdc++ has in its headers and libc++ expects in the library; see zig_linux.cmake.
#include <new>

namespace std {
bad_alloc::bad_alloc() noexcept {}
bad_array_new_length::bad_array_new_length() noexcept {}
}  // namespace std
