#include "shared_blocks.hpp"

#include "ggml.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <cstring>
#include <immintrin.h>
#endif

namespace haversack {

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE TARGET inline __attribute__((always_inline))

constexpr int BLOCK_LENGTH = 256;
constexpr int32_t TYPE_Q4_K = 12, TYPE_Q6_K = 14;  // the others: ggml.hpp

// ggml's layouts of 256 numbers.
struct BlockQ4K {
    uint16_t scale, min_scale;
    uint8_t scales[12];  // of groups of 32: 8 scales and 8 minima of 6 bits
    uint8_t numbers[128];
};
struct BlockQ6K {
    uint8_t low[128], high[64];
    int8_t scales[16];  // of groups of 16
    uint16_t scale;
};
struct BlockQ8K {  // of the input
    float scale;
    int8_t numbers[256];
    int16_t sums[16];
};

INLINE __m256i load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE float from_half(uint16_t half) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

INLINE float sum(__m128 x) {
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
INLINE float sum(__m256 x) {
    return sum(_mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x)));
}

// 32 numbers without sign times 32 with one, pairs of neighbours times a scale, to 8 sums.
INLINE __m256i products(__m256i weights, const int8_t *inputs, __m256i scales) {
    return _mm256_madd_epi16(scales, _mm256_maddubs_epi16(weights, load(inputs)));
}

// 16 lanes of 16 bits: number `i` in all; or number `i` in the lower 8, `i + 1` in the upper.
INLINE __m256i all_of(__m256i numbers, int i) {
    return _mm256_shuffle_epi8(numbers, _mm256_set1_epi16((short)(2 * i | (2 * i + 1) << 8)));
}
INLINE __m256i two_of(__m128i numbers, int i) {
    const __m128i lower = _mm_set1_epi8((char)i), upper = _mm_set1_epi8((char)(i + 1));
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(numbers, _mm_unpacklo_epi64(lower, upper)));
}

// ----------------------------------------------------------------- quantised
template <int ROWS>
TARGET void dot_q4_k(int64_t length, const char *weight, const char *const *inputs,
                     float *results) {
    const auto *block = (const BlockQ4K *)weight;
    const __m256i low = _mm256_set1_epi8(15);
    const BlockQ8K *in[ROWS];
    __m256 sums[ROWS];
    __m128 min_sums[ROWS];
    for (int r = 0; r < ROWS; r++) {
        in[r] = (const BlockQ8K *)inputs[r];
        sums[r] = _mm256_setzero_ps();
        min_sums[r] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, block++) {
        uint32_t packed[3];
        std::memcpy(packed, block->scales, sizeof packed);
        const uint32_t later = (packed[2] & 0x0F0F0F0F) | (packed[0] >> 2 & 0x30303030);
        const uint32_t later_min = (packed[2] >> 4 & 0x0F0F0F0F) | (packed[1] >> 2 & 0x30303030);
        const __m128i bytes = _mm_set_epi32(later_min, packed[1] & 0x3F3F3F3F, later,
                                            packed[0] & 0x3F3F3F3F);
        const __m256i both = _mm256_cvtepu8_epi16(bytes);
        const __m256i scales = _mm256_permute2x128_si256(both, both, 0);
        const __m128i mins = _mm256_extracti128_si256(both, 1);
        const float scale = from_half(block->scale), min_scale = from_half(block->min_scale);
        __m256i total[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const __m256i groups = load(in[r][b].sums);
            const __m128i pairs = _mm_hadd_epi16(_mm256_castsi256_si128(groups),
                                                 _mm256_extracti128_si256(groups, 1));
            const __m128 offset = _mm_cvtepi32_ps(_mm_madd_epi16(mins, pairs));
            min_sums[r] = _mm_fmadd_ps(_mm_set1_ps(-in[r][b].scale * min_scale), offset, min_sums[r]);
            total[r] = _mm256_setzero_si256();
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m256i both_halves = load(block->numbers + 32 * i);
            const __m256i first = _mm256_and_si256(both_halves, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both_halves, 4), low);
            const __m256i first_scale = all_of(scales, 2 * i);
            const __m256i second_scale = all_of(scales, 2 * i + 1);
            for (int r = 0; r < ROWS; r++) {
                const int8_t *numbers = in[r][b].numbers + 64 * i;
                total[r] = _mm256_add_epi32(total[r], products(first, numbers, first_scale));
                total[r] = _mm256_add_epi32(total[r], products(second, numbers + 32, second_scale));
            }
        }
        for (int r = 0; r < ROWS; r++)
            sums[r] = _mm256_fmadd_ps(_mm256_set1_ps(in[r][b].scale * scale),
                                      _mm256_cvtepi32_ps(total[r]), sums[r]);
    }
    for (int r = 0; r < ROWS; r++) results[r] = sum(sums[r]) + sum(min_sums[r]);
}

template <int ROWS>
TARGET void dot_q6_k(int64_t length, const char *weight, const char *const *inputs,
                     float *results) {
    const auto *block = (const BlockQ6K *)weight;
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(48);
    const BlockQ8K *in[ROWS];
    __m256 sums[ROWS];
    for (int r = 0; r < ROWS; r++) {
        in[r] = (const BlockQ8K *)inputs[r];
        sums[r] = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, block++) {
        const __m128i scales = _mm_loadu_si128((const __m128i *)block->scales);
        const __m256i wide_scales = _mm256_cvtepi8_epi16(scales);
        const float scale = from_half(block->scale);
        __m256i total[ROWS];
        for (int r = 0; r < ROWS; r++) {  // the weights' numbers lack 32
            const __m256i offset = _mm256_madd_epi16(load(in[r][b].sums), wide_scales);
            total[r] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(offset, 5));
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const __m256i bits = load(block->high + 32 * half);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m256i four = load(block->low + 64 * half + 32 * (i % 2));
                if (i >= 2) four = _mm256_srli_epi16(four, 4);
                const __m256i two = i == 0   ? _mm256_slli_epi16(bits, 4)
                                    : i == 1 ? _mm256_slli_epi16(bits, 2)
                                    : i == 2 ? bits
                                             : _mm256_srli_epi16(bits, 2);
                const __m256i numbers =
                    _mm256_or_si256(_mm256_and_si256(four, low), _mm256_and_si256(two, high));
                const __m256i number_scales = two_of(scales, 8 * half + 2 * i);
                for (int r = 0; r < ROWS; r++)
                    total[r] = _mm256_add_epi32(
                        total[r], products(numbers, in[r][b].numbers + 128 * half + 32 * i,
                                           number_scales));
            }
        }
        for (int r = 0; r < ROWS; r++)
            sums[r] = _mm256_fmadd_ps(_mm256_set1_ps(in[r][b].scale * scale),
                                      _mm256_cvtepi32_ps(total[r]), sums[r]);
    }
    for (int r = 0; r < ROWS; r++) results[r] = sum(sums[r]);
}

// ---------------------------------------------------------------- plain numbers
struct F32 {
    using Number = float;
    static INLINE __m256 read(const float *from) { return _mm256_loadu_ps(from); }
    static INLINE float add_up(__m256 x) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_hadd_ps(four, four);
        return _mm_cvtss_f32(_mm_hadd_ps(four, four));
    }
};
struct F16 : F32 {
    using Number = uint16_t;
    static INLINE __m256 read(const uint16_t *from) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    }
};
struct BF16 {
    using Number = uint16_t;
    static INLINE __m256 read(const uint16_t *from) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static INLINE float add_up(__m256 x) { return sum(x); }
};

template <class Type, int ROWS>
TARGET void dot_plain(int64_t length, const char *weight, const char *const *inputs, float *results) {
    using Number = typename Type::Number;
    __m256 sums[ROWS][4];
    for (int r = 0; r < ROWS; r++)
        for (__m256 &lane : sums[r]) lane = _mm256_setzero_ps();
    for (int64_t i = 0; i < length; i += 32)
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; lane++) {
            const __m256 numbers = Type::read((const Number *)weight + i + 8 * lane);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                sums[r][lane] = _mm256_fmadd_ps(
                    numbers, Type::read((const Number *)inputs[r] + i + 8 * lane), sums[r][lane]);
        }
    for (int r = 0; r < ROWS; r++)
        results[r] = Type::add_up(_mm256_add_ps(_mm256_add_ps(sums[r][0], sums[r][2]),
                                                _mm256_add_ps(sums[r][1], sums[r][3])));
}
template <int ROWS> constexpr auto dot_f32 = dot_plain<F32, ROWS>;
template <int ROWS> constexpr auto dot_f16 = dot_plain<F16, ROWS>;
template <int ROWS> constexpr auto dot_bf16 = dot_plain<BF16, ROWS>;

// ------------------------------------------------------------------------- all
// Rows go in groups of nearly equal size, at most `most`: more sums do not fit the registers.
#define SHARED_DOT(name, most)                                                                     \
    void shared_##name(int64_t length, const char *weight, const char *const *inputs,              \
                       float *results, int count) {                                                \
        for (int at = 0, size; at < count; at += size) {                                           \
            const int num_groups = (count - at + most - 1) / most;                                 \
            size = (count - at + num_groups - 1) / num_groups;                                     \
            const auto dot = size == 1   ? name<1>                                                 \
                             : size == 2 ? name<2>                                                 \
                             : size == 3 ? name<3>                                                 \
                                         : name<most>;                                             \
            dot(length, weight, inputs + at, results + at);                                        \
        }                                                                                          \
    }
SHARED_DOT(dot_q4_k, 4)
SHARED_DOT(dot_q6_k, 4)
SHARED_DOT(dot_f32, 3)
SHARED_DOT(dot_f16, 3)
SHARED_DOT(dot_bf16, 3)

// Whether the processor has AVX2, FMA and F16C, and the system keeps their registers. (The compiler's
// own question needs a library that zig lacks on Windows.)
bool is_able() {
    unsigned a = 0, b = 0, c = 0, d = 0, kept = 0;
    constexpr unsigned NEEDED = bit_FMA | bit_F16C | bit_OSXSAVE, REGISTERS = 6;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & NEEDED) != NEEDED) return false;
    asm("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    return (kept & REGISTERS) == REGISTERS && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (b & bit_AVX2);
}

}  // namespace

SharedDot shared_dot(int32_t type) {
    static const bool able = is_able();
    if (!able) return nullptr;
    switch (type) {
    case TYPE_F32: return shared_dot_f32;
    case TYPE_F16: return shared_dot_f16;
    case TYPE_BF16: return shared_dot_bf16;
    case TYPE_Q4_K: return shared_dot_q4_k;
    case TYPE_Q6_K: return shared_dot_q6_k;
    default: return nullptr;
    }
}

#else

SharedDot shared_dot(int32_t) { return nullptr; }

#endif

}  // namespace haversack
