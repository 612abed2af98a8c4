#include "layer.hpp"

#include <algorithm>
#include <cstring>

namespace haversack {

namespace {
constexpr int64_t PAGE_BYTES = 4096;  // direct reads begin and end at multiples of it
}

void Matrix::place(Read &read, int32_t expert, int32_t slot, bool ahead) const {
    const int64_t first = offset + expert * file_stride, start = first - first % PAGE_BYTES;
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

void Matrix::move(int32_t from_slot, int32_t to_slot) const {
    std::memcpy(rooms + to_slot * stride, rooms + from_slot * stride, stride);
}

int64_t Layer::expert_bytes(int32_t level) const {
    int64_t num_bytes = 0;
    for (int32_t m = 0; m < num_matrices; m++) num_bytes += matrices[level][m].num_bytes;
    return num_bytes;
}

const Layer &layer_at(const std::vector<Layer> &layers, int32_t pool, int32_t row) {
    return *std::find_if(layers.begin(), layers.end(),
                         [&](const Layer &one) { return one.pool == pool && one.row == row; });
}

}  // namespace haversack
