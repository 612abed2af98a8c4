// Joining nested copies: a base, which is a block of a coarser type, and a rest of the code's lower
// bits become the original block. quant/nested.py splits them, and says how a rest is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace haversack {

// Joins `num_blocks` blocks of the ggml type `type`. Returns false if it has no nested form. `rest` may
// be the end of `out`.
bool join_nested(int32_t type, const uint8_t *base, const uint8_t *rest, uint8_t *out,
                 size_t num_blocks);

}  // namespace haversack
