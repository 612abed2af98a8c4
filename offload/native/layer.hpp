// Where the experts of a layer lie: in the model's files and in slots.
#pragma once

#include <cstdint>
#include <vector>

#include "precision.hpp"
#include "readers.hpp"

namespace haversack {

constexpr int MAX_MATRICES = 4;  // of one expert

// One matrix (num_rows, num_inputs) of every expert of a layer, in copies of one level.
struct Matrix {
    uint8_t *rooms;              // of slot 0 in its memory, one every `stride` bytes
    int64_t stride, rest;        // in each room the matrix lies at `rest`
    int64_t offset, num_bytes;   // of expert 0 in the file, and of every expert
    int64_t num_inputs, num_rows;
    int32_t file, type;
    int64_t file_stride;         // from one expert's bytes in the file to the next one's

    uint8_t *in_slot(int32_t slot) const { return rooms + slot * stride + rest; }
    // Copy a slot's room, whichever layer's matrix rests in it.
    void move(int32_t from_slot, int32_t to_slot) const;
    // Make `read` one of `expert` into `slot`, `ahead` of demand or at once.
    void place(Read &read, int32_t expert, int32_t slot, bool ahead) const;
};

struct Layer {
    int32_t number;  // its own, in the model
    int32_t row, pool, num_matrices;
    Matrix matrices[NUM_LEVELS][MAX_MATRICES];
    // What nested LOW copies lack (nested.hpp), at the end of the HIGH one's place in a slot. Without
    // bytes, where the HIGH copy is read whole.
    Matrix rests[MAX_MATRICES];

    int64_t expert_bytes(int32_t level) const;
};

// The layer that has this row of a pool.
const Layer &layer_at(const std::vector<Layer> &layers, int32_t pool, int32_t row);

}  // namespace haversack
