// One pool's slots: which expert of which layer lies in which slot, and which one leaves when another
// needs its slot. Plain integers; others move the bytes. cache/slots.py and cache/policies.py
// (ExpectedUse) describe the same rules in Python, and tests hold both against each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace haversack {

constexpr int32_t NOWHERE = -1;

// A slot is EMPTY, LOADING (its expert's bytes are on their way) or READY. Only a READY slot may be
// multiplied. A pinned slot keeps its expert.
enum SlotState : uint8_t { EMPTY = 0, LOADING = 1, READY = 2 };

// What the eviction rule has learnt of each expert, by key: row * experts + expert.
struct Uses {
    std::vector<double> uses, last_pass, last_use;
    double passes = 1, row = 0, layers = 0;  // its clock, see Policy.clock in cache/policies.py
};

class Slots {
  public:
    // `num_spare` slots more than needed are emptied at once: to order experts costs the same for a
    // few as for one.
    Slots(int32_t num_rows, int32_t num_experts, int32_t num_slots, int32_t num_spare);

    const int32_t num_rows, num_experts;
    int32_t num_slots() const { return (int32_t)owner_.size(); }
    int32_t num_unpinned() const { return num_slots() - num_pinned_; }
    int32_t find(int32_t row, int32_t expert) const { return slot_of_[row * num_experts + expert]; }
    bool is_ready(int32_t slot) const { return state_[slot] == READY; }

    // The experts of `row` are used now, those with a slot and those without.
    void use(int32_t row, const std::vector<int32_t> &experts);
    void pin(int32_t slot) { num_pinned_ += pins_[slot]++ == 0; }
    void unpin(int32_t slot) { num_pinned_ -= --pins_[slot] == 0; }
    // Give each of `experts` (distinct, without a slot) a slot: LOADING and pinned. There must be so
    // many unpinned slots.
    std::vector<int32_t> claim(int32_t row, const std::vector<int32_t> &experts);
    // `count` slots emptied and pinned, for bytes that will not stay; `unpin` returns them.
    std::vector<int32_t> borrow(int32_t count);
    // The bytes of the expert in this LOADING slot are all there.
    void fill(int32_t slot) { state_[slot] = READY; }
    // The slot's expert has none any more.
    void drop(int32_t slot);
    // After a failure, when no read is under way: what was LOADING is not there, nothing is pinned.
    void recover();
    // Have so many slots. Those that go must not be pinned; their experts leave.
    void resize(int32_t num_slots);

    // The keys of the experts in READY slots, the last to leave first.
    std::vector<int32_t> residents() const;
    // Those of `experts` (distinct, without a slot) that are worth one: all while slots are empty,
    // then those that the rule would not give up before others that may leave.
    std::vector<int32_t> outlasting(int32_t row, const std::vector<int32_t> &experts) const;

    const Uses &uses() const { return uses_; }
    // Go on from what another run learnt: what its latest passes used counts no more than the rest,
    // because another text begins.
    void remember(const Uses &uses);
    // What is wrong with the books; null if nothing is.
    const char *fault() const;

  private:
    std::vector<int32_t> vacate(int32_t count);
    void evict(int32_t count, std::vector<int32_t> &vacated);
    std::vector<int32_t> first_to_leave(std::vector<int32_t> keys, size_t count) const;
    double score(int32_t key) const;

    const int32_t num_spare_;
    std::vector<int32_t> slot_of_;  // by key
    std::vector<int32_t> owner_;    // by slot: a key, or NOWHERE
    std::vector<uint8_t> state_;
    std::vector<int32_t> pins_;
    int32_t num_pinned_ = 0;
    Uses uses_;
    // Uses that fade, by key, in a unit that grows from pass to pass: no older use must be touched.
    std::vector<double> faded_;
    double unit_ = 1;
    std::vector<double> roots_;  // of 0 to num_rows
};

}  // namespace haversack
