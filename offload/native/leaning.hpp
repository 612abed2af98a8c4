// Routing toward the cache: a router's choice that leans to experts with a copy in a slot. Plain numbers;
// tests/offload/test_leaning.py has the same rule in Python, and holds both against each other.
#pragma once

#include <cstdint>
#include <vector>

namespace haversack {

// An expert with a copy ranks as if its score were higher by `bias` of the range of all scores. The
// `num_kept` experts that rank first stay chosen, whatever lies in slots.
struct Leaning {
    float bias = 0;
    int32_t num_kept = 1;
};

// `ranked` are all experts in the order of their `scores`, the highest first; `resident` tells which of
// them, by number, have a copy. Moves the `num_used` experts that a leaning router chooses to the front,
// in the order of their ranks, and returns how many of them come from behind there.
int32_t lean(int32_t *ranked, const float *scores, const std::vector<bool> &resident, int32_t num_used,
             Leaning leaning);

}  // namespace haversack
