// Dot products of one row of a weight with several rows of input: its numbers are read and unpacked
// once for all of them, and each result has the bits of llama.cpp's own dot product, because it adds
// the same numbers in the same order.
#pragma once

#include <cstdint>

namespace haversack {

constexpr int64_t SHARED_LENGTH = 32;  // what the length must be a multiple of

// Write the products of `weight` with `count` rows of input, of `length` numbers in the type that
// llama.cpp's dot product wants.
using SharedDot = void (*)(int64_t length, const char *weight, const char *const *inputs,
                           float *results, int count);

// That of a ggml type on this processor, or null.
SharedDot shared_dot(int32_t type);

}  // namespace haversack
