// A pass of a context: one call of llama_decode, computed by the calling thread's team.
#pragma once

#include <cstdint>

#include "guard.hpp"
#include "team.hpp"

namespace haversack {

// struct llama_batch, passed by value.
struct Batch {
    int32_t num_rows;
    int32_t *tokens;
    float *embeddings;
    int32_t *positions;
    int32_t *num_sequences;
    int32_t **sequences;
    int8_t *wants_logits;
};

// What Python fills in once for a context and looks at after each pass; it begins as zeros.
struct Pass {
    int32_t (*decode)(void *context, Batch batch);
    void *context;
    const Batch *batch;
    void *owner;  // of the context, see guard.hpp
    // Ends a pass that was computed to its last node or not; returns its failure, 0 for none. It may
    // be null.
    int32_t (*end)(void *engine, bool computed);
    void *engine;
    double spin_s;
    int32_t num_threads;    // with `spin_s` see Team::set; 0: OpenMP computes
    int32_t is_single_row;  // delays in a pass of several rows tell nothing of single tokens
    double pass_s;  // without the waits of the owner
    // How long the team's threads were ready and did not run, as far as it was looked up: that takes
    // a system call for each thread, so not every pass does.
    double delayed_s;
    int32_t gave_up;  // whether llama.cpp did; see haversack_guard_failure
    int32_t failure;  // what `end` returned
    // The latest look.
    const Team *team;
    double looked_s, seen_delayed_s;
};

// Passes of one row, one after the other without Python in between: each computes the token that
// comes after the one before it.
struct Steps {
    float *(*logits_after)(void *context, int32_t row);
    bool (*ends)(void *vocabulary, int32_t token);  // whether the text ends with the token
    void *vocabulary;
    int32_t num_logits;
    int32_t most;  // passes
    double most_s;  // no pass begins later than that
    // Told of each token that was chosen: whether its pass is left to the caller, and all behind it.
    // It may be null.
    bool (*stops)(void *watch, int32_t token);
    void *watch;
    const int32_t *given;  // the tokens of all passes; null: the likeliest after each
    float *logits;         // (most, num_logits) after each pass, if tokens are given
    int32_t *likeliest;    // the token after each pass, if none are given; -1: not finite logits
    double passes_s;       // of all passes
    double first_s;        // of the first one, which may make its graph anew
    int32_t num_done;      // passes; a failed one ends them and does not count
};

}  // namespace haversack
