#include "checksum.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "system.hpp"

namespace haversack {

namespace {

constexpr uint64_t FACTOR = 0x9E3779B97F4A7C15;  // odd, about 2^64 over the golden ratio
constexpr int64_t READ_BYTES = 128 * 1024;       // of one read: fits into a core's own cache

uint64_t step(uint64_t lane, uint64_t word) {
    lane ^= word;
    return (lane << 29 | lane >> 35) * FACTOR;
}

// Enough lanes that the multiplications of the others hide the time of each.
void add_blocks(uint64_t *lanes, const uint8_t *bytes, size_t num_blocks) {
    uint64_t a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
    uint64_t e = lanes[4], f = lanes[5], g = lanes[6], h = lanes[7];
    for (; num_blocks > 0; num_blocks--, bytes += Checksum::BLOCK_BYTES) {
        uint64_t words[Checksum::NUM_LANES];
        std::memcpy(words, bytes, sizeof words);
        a = step(a, words[0]), b = step(b, words[1]), c = step(c, words[2]), d = step(d, words[3]);
        e = step(e, words[4]), f = step(f, words[5]), g = step(g, words[6]), h = step(h, words[7]);
    }
    lanes[0] = a, lanes[1] = b, lanes[2] = c, lanes[3] = d;
    lanes[4] = e, lanes[5] = f, lanes[6] = g, lanes[7] = h;
}

}  // namespace

void Checksum::add(const uint8_t *bytes, size_t count) {
    if (count == 0) return;
    if (num_rest > 0) {
        size_t taken = std::min<size_t>(count, BLOCK_BYTES - num_rest);
        std::memcpy(rest + num_rest, bytes, taken);
        num_rest += taken, bytes += taken, count -= taken;
        if (num_rest < BLOCK_BYTES) return;
        add_blocks(lanes, rest, 1);
    }
    add_blocks(lanes, bytes, count / BLOCK_BYTES);
    num_rest = count % BLOCK_BYTES;
    std::memcpy(rest, bytes + count - num_rest, num_rest);
}

void Checksum::pad() {
    if (num_rest == 0) return;
    std::memset(rest + num_rest, 0, BLOCK_BYTES - num_rest);
    add_blocks(lanes, rest, 1);
    num_rest = 0;
}

int32_t Checksum::add_file(int descriptor, int64_t offset, int64_t count) {
    std::unique_ptr<uint8_t[]> bytes(new uint8_t[READ_BYTES]);
    while (count > 0) {
        const int64_t got =
            read_at(descriptor, bytes.get(), std::min(count, READ_BYTES), offset);
        if (got < 0) return static_cast<int32_t>(got);
        if (got == 0) return FILE_TOO_SHORT;
        add(bytes.get(), got);
        offset += got, count -= got;
    }
    return 0;
}

uint64_t Checksum::digest() {
    pad();
    uint64_t result = 0;
    for (uint64_t lane : lanes) {
        result = (result ^ lane) * FACTOR;
        result ^= result >> 32;
    }
    return result;
}

}  // namespace haversack
