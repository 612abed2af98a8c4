// A pass of a context: one call of llama_decode, computed by the calling thread's team.
#pragma once

#include <cstdint>

#include "guard.hpp"
#include "team.hpp"

namespace haversack {

// struct llama_batch, passed by value. With more than two words, only its size matters.
struct Batch {
    int64_t words[7];
};

// What Python fills in once for a context and looks at after each pass; it begins as zeros.
struct Pass {
    int32_t (*decode)(void *context, Batch batch);
    void *context;
    const Batch *batch;
    void *owner;  // of the context, see guard.hpp
    double spin_s;
    int32_t num_threads;    // with `spin_s` see Team::set; 0: OpenMP computes
    int32_t is_single_row;  // delays in a pass of several rows tell nothing of single tokens
    double pass_s;  // without the waits of the owner
    // How long the team's threads were ready and did not run, as far as it was looked up: that takes
    // a system call for each thread, so not every pass does.
    double delayed_s;
    int32_t gave_up;  // whether llama.cpp did; see haversack_guard_failure
    // The latest look.
    const Team *team;
    double looked_s, seen_delayed_s;
};

}  // namespace haversack
