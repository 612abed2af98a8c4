// Rows that do not know of each other: in passes of 2 to 7 rows, each row gets the bits that it would
// have alone. llama.cpp's kernels for plain numbers and its attention round differently for several
// rows than for one.
#pragma once

#include "cpu.hpp"

namespace haversack {

// The rows of a pass of at most so many have the bits of single rows. From 8 rows on llama.cpp
// multiplies in tiles, which round differently.
constexpr int MOST_EXACT_ROWS = 7;

// Whether to take `op` from llama.cpp: it has 2 to MOST_EXACT_ROWS rows, and their bits depend on how
// many there are, or our product is faster.
bool takes_rows(const Tensor *op);

// Compute `nodes` in this order, as llama.cpp does; of the operations that depend on the number of
// rows, each row as if it were alone. Products of few rows with experts are ours, with the same bits.
Status compute_nodes(Tensor *const *nodes, size_t count, Cpu &cpu);

}  // namespace haversack
