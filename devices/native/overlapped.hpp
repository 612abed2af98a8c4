// Windows' reads at a place of a file.
#pragma once

#include <cstdint>

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

namespace haversack {

constexpr int64_t MOST_BYTES = 1 << 30;  // of one request, whose length has 32 bits

inline OVERLAPPED placed_at(int64_t offset) {
    OVERLAPPED place{};
    place.Offset = static_cast<DWORD>(offset);
    place.OffsetHigh = static_cast<DWORD>(offset >> 32);
    return place;
}

// Returns the errno that says the same; 0 for the end of a file.
int errno_of(DWORD error);

}  // namespace haversack
