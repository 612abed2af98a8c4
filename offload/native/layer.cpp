#include "layer.hpp"

namespace haversack {

namespace {
constexpr int64_t PAGE_BYTES = 4096;  // direct reads begin and end at multiples of it
}

void Matrix::place(Read &read, int32_t expert, int32_t slot, bool ahead) const {
    const int64_t first = offset + expert * num_bytes, start = first - first % PAGE_BYTES;
    const int64_t residue = first - start, padded = residue + num_bytes + PAGE_BYTES - 1;
    read.room = rooms + slot * stride;
    read.offset = start;
    read.length = padded - padded % PAGE_BYTES;
    read.need = residue + num_bytes;
    read.from = residue;
    read.to = rest;
    read.num_bytes = num_bytes;
    read.file = file;
    read.ahead = ahead;
    read.state = WAITING;
    read.error = 0;
    read.got = 0;
    read.due_s = 0;
}

}  // namespace haversack
