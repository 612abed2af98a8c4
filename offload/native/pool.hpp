// Copies of two precisions in one pool of bytes: slots for HIGH copies and slots for LOW ones. Plain
// integers; others move the bytes. cache/levels.py describes the same rules in Python, and tests hold
// both against each other. A pool of a model that is exact has HIGH slots alone.
#pragma once

#include "slots.hpp"

namespace haversack {

// The bytes of a pool, of a slot of each level, and how many slots a level has at least.
struct PoolBytes {
    int64_t total, slot[NUM_LEVELS];
    int32_t least_slots[NUM_LEVELS];

    int32_t first_slots(int32_t level) const;
};

struct Copy {
    int32_t level, slot;
};

// A copy's bytes are moved from one slot of its level to another.
struct Move {
    int32_t level, source, target;
};

class Pool {
  public:
    Pool(int32_t num_rows, int32_t num_experts, int32_t num_slots, int32_t num_spare);
    Pool(int32_t num_rows, int32_t num_experts, const PoolBytes &bytes, int32_t num_spare);

    Slots high, low;
    Slots &level(int32_t level) { return level == HIGH ? high : low; }
    bool has_low() const { return bytes_.total > 0; }
    // The slots of devices for the same experts. Those of `exclusive` devices are in both lists.
    std::vector<Slots *> above, exclusive;
    // Whether a device has this expert's READY copy.
    bool is_above(int32_t row, int32_t expert) const;
    // Whether two devices have slots for the same expert.
    bool is_twice_above() const;
    // The slots here, not pinned, of experts whose READY copy an exclusive device has as well.
    std::vector<int32_t> doubles() const;

    // The copy that serves an expert of `row` wanted at this level; NOWHERE as its slot if none does.
    // A copy that is there serves before one that is coming.
    Copy find(int32_t row, int32_t expert, int32_t wanted) const;
    // At which levels missing experts are read, `wanted` at these: HIGH in place of LOW for the first
    // ones that there are HIGH slots for that were never used.
    std::vector<int32_t> read_levels(const std::vector<int32_t> &wanted);
    // The bytes of the copy in this LOADING slot are all there. If it is HIGH, the LOW one leaves.
    void fill(int32_t level, int32_t slot);
    void recover();
    // Give slots to the level that is short of them, between passes. The moves must be carried out in
    // their order before any slot is used; a level's new slots are its last ones.
    std::vector<Move> balance();
    // The expert with a LOW copy that gains most from a HIGH one, for an idle drive to read: its key,
    // or NOWHERE if a HIGH copy that would leave is worth about as much.
    int32_t next_upgrade() const;
    // Have as many bytes as `num_slots` HIGH slots take, most of them in HIGH slots again. Those that go
    // must not be pinned.
    void resize(int32_t num_slots);

  private:
    Pool(std::shared_ptr<ExpectedUse> rule, int32_t num_slots, int32_t num_low, int32_t num_spare,
         const PoolBytes &bytes);
    int64_t free_bytes() const;
    int32_t count_for_one(int32_t level) const;
    int32_t level_to_shrink(const bool *short_of_slots) const;

    PoolBytes bytes_;
    bool is_filling_ = true;  // some HIGH slots were never used
};

}  // namespace haversack
