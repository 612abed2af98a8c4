// The memory of the weights that llama.cpp computes with: the host's own, in huge pages where the system
// has them. A model of 7.9 GiB that the system had in memory loaded in 2.3 s, in pages of 4 KiB in 5.5 s.
#pragma once

#include "ggml.hpp"

namespace haversack {

// For tensor_buft_overrides. Its buffers are the CPU's.
BufferType *weight_memory();

}  // namespace haversack
