// Growth: how many of its slots a pool uses yet.
//
// On some machines, virtual ones that give unused memory back to their host, making a page takes longer
// than reading its bytes. Where tokens miss little, a miss then had better take the slot of an expert
// that is hardly used than wait for new pages. So a pool gets more slots as their pages are made, which
// a thread then does in a small part of the time. Where tokens miss much, and in a prompt, a pool has
// all its slots and pages are made as fast as reads need them.
#include "engine.hpp"

#include <algorithm>

namespace haversack {

namespace {
constexpr double FEW_MISSES = 0.05;  // of the experts used; with more, every slot pays at once
constexpr int32_t MOST_PASSES = 16;  // that the mean of misses goes back
}  // namespace

// A batch begins.
void Engine::use_all_slots() {
    readers_.touch_gently(false);
    num_passes_ = 0;
    for (size_t number = 0; number < pools_.size(); number++)
        if (!low_.exist()) pools_[number].high.resize(num_slots_[number]);
}

// A pass of few rows has ended.
void Engine::grow_pools() {
    const double hits = state.hits - hits_at_start_, misses = state.misses - misses_at_start_;
    if (low_.exist() || hits + misses == 0) return;
    num_passes_ = std::min(num_passes_ + 1, MOST_PASSES);
    miss_share_ += (misses / (hits + misses) - miss_share_) / num_passes_;
    const bool is_held_back = miss_share_ < FEW_MISSES && readers_.pages_are_dear();
    readers_.touch_gently(is_held_back);
    for (size_t number = 0; number < pools_.size(); number++) {
        Slots &slots = pools_[number].high;
        int32_t wanted = num_slots_[number];
        if (is_held_back) wanted = std::clamp(num_made(number), slots.num_used(), wanted);
        if (wanted != slots.num_slots()) slots.resize(wanted);
    }
}

// How many slots of a pool have pages.
int32_t Engine::num_made(int32_t number) {
    const Layer &layer = layer_at(layers_, number, 0);
    int64_t least = num_slots_[number];
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        const Matrix &matrix = layer.matrices[HIGH][m];
        least = std::min(least, readers_.made_bytes(matrix.rooms) / matrix.stride);
    }
    return least;
}

}  // namespace haversack
