// A checksum of bytes that finds accidental damage: a file cut short, zeroed, or with a flipped
// bit.
//
// The idea of independent lanes, each a chain of a multiplication and a rotation, is xxHash's (Yann
// Collet, https://github.com/Cyan4973/xxHash). Here a word costs one multiplication. Each step can
// be undone if the word is known, so one changed word always changes the result.
#pragma once

#include <cstddef>
#include <cstdint>

namespace haversack {

struct Checksum {
    static constexpr size_t NUM_LANES = 8, BLOCK_BYTES = 8 * NUM_LANES;

    uint64_t lanes[NUM_LANES];
    uint8_t rest[BLOCK_BYTES];  // bytes that do not fill a block yet
    uint64_t num_rest;

    void add(const uint8_t *bytes, size_t count);
    // Add `count` bytes from `offset` of an open file. Returns 0, -errno, or FILE_TOO_SHORT.
    int32_t add_file(int descriptor, int64_t offset, int64_t count);
    // Fill the last block with zeros.
    void pad();
    // Returns the checksum of all bytes.
    uint64_t digest();

    enum : int32_t { FILE_TOO_SHORT = 1 };
};

}  // namespace haversack
