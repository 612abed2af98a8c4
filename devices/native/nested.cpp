#include "nested.hpp"

#include <cstring>

namespace haversack {

namespace {

constexpr int32_t Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14;  // enum ggml_type
constexpr int LANES = 32;  // codes that lie side by side in the blocks of 256 elements
constexpr int Q2_CODES = 16;  // where a block of type Q2_K has its codes, two bits each

// Nothing overlaps, so the compiler may compute many lanes at once.
using Bytes = const uint8_t *__restrict__;
using Out = uint8_t *__restrict__;

// Bytes of a block: the base, the rest and the original.
struct Sizes {
    size_t base, rest, whole;
};

// The original's scales; then of each code its lower two bits.
void join_q4_k(Bytes base, Bytes rest, Out out) {
    std::memcpy(out, rest, 16);
    for (int half = 0; half < 2; half++) {
        Bytes high = base + Q2_CODES + LANES * half, low = rest + 16 + LANES * half;
        Out codes = out + 16 + 2 * LANES * half;
        for (int lane = 0; lane < LANES; lane++) {
            const unsigned h = high[lane], l = low[lane];
            codes[lane] = (h & 3) << 2 | (l & 3) | (h & 12) << 4 | (l & 12) << 2;
            codes[LANES + lane] = (h >> 2 & 12) | (l >> 4 & 3) | (h & 192) | (l >> 2 & 48);
        }
    }
}

// Eight lanes at once: the masks keep out what a shift brings in from a neighbour.
uint64_t load(Bytes bytes) {
    uint64_t lanes;
    std::memcpy(&lanes, bytes, sizeof lanes);
    return lanes;
}

constexpr uint64_t each(uint8_t mask) { return mask * 0x0101010101010101; }

// The original's scales; then of each code the two bits below the upper ones, and its lowest bit.
void join_q5_k(Bytes base, Bytes rest, Out out) {
    std::memcpy(out, rest, 16);
    Out fifth = out + 16, codes = out + 48;  // the highest bit of each code, the others
    for (int lane = 0; lane < LANES; lane += 8) {
        const uint64_t lowest = load(rest + 16 + 2 * LANES + lane);
        uint64_t upper = 0;
        for (int pair = 0; pair < 4; pair++) {
            const int byte = LANES * (pair / 2) + lane, shift = pair % 2 * 4;
            const uint64_t h = load(base + Q2_CODES + byte) >> shift;
            const uint64_t m = load(rest + 16 + byte) >> shift, l = lowest >> 2 * pair;
            const uint64_t joined = (h & each(1)) << 3 | (m & each(3)) << 1 | (l & each(1)) |
                                    (h & each(4)) << 5 | (m & each(12)) << 3 | (l & each(2)) << 3;
            std::memcpy(codes + LANES * pair + lane, &joined, sizeof joined);
            upper |= ((h >> 1 & each(1)) | (h >> 2 & each(2))) << 2 * pair;
        }
        std::memcpy(fifth + lane, &upper, sizeof upper);
    }
}

// The original without the upper two bits of its codes. Where a scale is negative, the base has
// these bits inverted, because its scales have no sign.
void join_q6_k(Bytes base, Bytes rest, Out out) {
    std::memcpy(out, rest, 128);
    std::memcpy(out + 192, rest + 128, 18);
    const bool is_inverse = rest[145] & 0x80;  // the sign of the scale of scales
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < 2; part++) {
            uint8_t inverted = 0;
            for (int place = 0; place < 4; place++) {
                const bool negative = rest[128 + 8 * half + 2 * place + part] & 0x80;
                if (negative != is_inverse) inverted |= 3 << 2 * place;
            }
            const int first = LANES * half + LANES / 2 * part;
            for (int lane = first; lane < first + LANES / 2; lane++)
                out[128 + lane] = base[Q2_CODES + lane] ^ inverted;
        }
}

// The original's scale, then the lower four bits of each code. The base has unsigned codes.
void join_q8_0(Bytes base, Bytes rest, Out out) {
    std::memcpy(out, rest, 2);
    for (int lane = 0; lane < LANES / 2; lane++) {
        const unsigned h = base[4 + lane], l = rest[2 + lane];
        out[2 + lane] = ((h & 15) << 4 | (l & 15)) ^ 0x80;
        out[2 + LANES / 2 + lane] = ((h & 240) | l >> 4) ^ 0x80;
    }
}

constexpr size_t MOST_REST = 146;

// Where the rests are the end of `out`, a block never reaches those of later blocks: it is longer than
// its own rest. But it may reach its own, which is therefore copied.
template <void (*join)(Bytes, Bytes, Out)>
bool join_all(Sizes sizes, const uint8_t *base, const uint8_t *rest, uint8_t *out, size_t count) {
    uint8_t own_rest[MOST_REST];
    for (; count > 0; count--, base += sizes.base, rest += sizes.rest, out += sizes.whole) {
        std::memcpy(own_rest, rest, sizes.rest);
        join(base, own_rest, out);
    }
    return true;
}

}  // namespace

bool join_nested(int32_t type, const uint8_t *base, const uint8_t *rest, uint8_t *out,
                 size_t num_blocks) {
    switch (type) {
        case Q4_K: return join_all<join_q4_k>({84, 80, 144}, base, rest, out, num_blocks);
        case Q5_K: return join_all<join_q5_k>({84, 112, 176}, base, rest, out, num_blocks);
        case Q6_K: return join_all<join_q6_k>({84, 146, 210}, base, rest, out, num_blocks);
        case Q8_0: return join_all<join_q8_0>({20, 18, 34}, base, rest, out, num_blocks);
        default: return false;
    }
}

}  // namespace haversack
