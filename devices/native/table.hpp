// One pool's slot table and its rule of eviction: the same steps as cache/slots.py and
// cache/policies.py (ExpectedUse), on the same arrays.
#pragma once

#include <cstdint>
#include <vector>

namespace haversack {

constexpr int32_t NOWHERE = -1;
enum : uint8_t { SLOT_EMPTY = 0, SLOT_LOADING = 1, SLOT_READY = 2 };

// The clock of a rule, as an array of float64.
enum : int { PASSES = 0, ROW = 1, CLOCK = 2, UNIT = 3 };

// Arrays of one SlotTable; devices/_native/own.py declares the same fields.
struct Table {
    int32_t num_rows, num_experts, num_slots, num_spare;
    int32_t *slot_of;  // (rows, experts)
    int32_t *owner;    // (slots,) row * experts + expert
    uint8_t *state;    // (slots,)
    int32_t *pins;     // (slots,)
    double *uses, *last_pass, *last_use, *faded;  // (rows * experts,)
    double *clock;     // see above
    double half_life, growth, lately, recency;

    int32_t &slot(int32_t row, int32_t expert) { return slot_of[row * num_experts + expert]; }
    int32_t num_unpinned() const;

    // The experts of `row` are used now.
    void use(int32_t row, const int32_t *experts, int32_t count);
    // Give each of `experts` a slot, LOADING and pinned; false if too few are unpinned.
    bool claim(int32_t row, const int32_t *experts, int32_t count, int32_t *slots);
    void drop(int32_t slot);

  private:
    void evict(int32_t count, std::vector<int32_t> &evicted);
    double score(int32_t key) const;
};

}  // namespace haversack
