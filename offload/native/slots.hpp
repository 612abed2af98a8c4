// The slots of one level of a pool: which expert of which layer lies in which slot, and which one
// leaves when another needs its slot. Plain integers; others move the bytes. cache/slots.py describes
// the same books in Python, and tests hold both against each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "expected_use.hpp"

namespace haversack {

constexpr int32_t NOWHERE = -1;

// A slot is EMPTY, LOADING (its expert's bytes are on their way) or READY. Only a READY slot may be
// multiplied. A pinned slot keeps its expert.
enum SlotState : uint8_t { EMPTY = 0, LOADING = 1, READY = 2 };

class Slots {
  public:
    // `num_spare` slots more than needed are emptied at once: to order experts costs the same for a
    // few as for one. The rule may be shared with the slots of the other level.
    Slots(std::shared_ptr<ExpectedUse> rule, int32_t level, int32_t num_slots, int32_t num_spare);
    Slots(int32_t num_rows, int32_t num_experts, int32_t num_slots, int32_t num_spare)
        : Slots(std::make_shared<ExpectedUse>(num_rows, num_experts, 0), HIGH, num_slots, num_spare) {}

    const int32_t num_rows, num_experts, num_spare;
    int32_t num_slots() const { return (int32_t)owner_.size(); }
    int32_t num_unpinned() const { return num_slots() - num_pinned_; }
    int32_t find(int32_t row, int32_t expert) const { return slot_of(row * num_experts + expert); }
    int32_t slot_of(int32_t key) const { return slot_of_[key]; }
    SlotState state_of(int32_t row, int32_t expert) const {
        const int32_t slot = find(row, expert);
        return slot == NOWHERE ? EMPTY : (SlotState)state_[slot];
    }
    bool is_ready(int32_t slot) const { return state_[slot] == READY; }
    bool is_pinned(int32_t slot) const { return pins_[slot] != 0; }
    int32_t num_pinned_ready() const;

    // How many slots there are up to the last one in use: those behind it are empty and not pinned.
    int32_t num_used() const;
    // How many slots could be claimed without an eviction.
    int32_t num_empty() const;

    // The experts of `row` are used now, those with a slot and those without, and wanted at `levels`;
    // at HIGH where these are empty.
    void use(int32_t row, const std::vector<int32_t> &experts, const std::vector<int32_t> &levels = {}) {
        rule_->use(row, experts, levels);
    }
    void pin(int32_t slot) { num_pinned_ += pins_[slot]++ == 0; }
    void unpin(int32_t slot) { num_pinned_ -= --pins_[slot] == 0; }
    // Give each of `experts` (distinct, without a slot) a slot: LOADING and pinned. There must be so
    // many unpinned slots.
    std::vector<int32_t> claim(int32_t row, const std::vector<int32_t> &experts);
    // `count` slots emptied and pinned, for bytes that will not stay; `unpin` returns them.
    std::vector<int32_t> borrow(int32_t count);
    // The bytes in this borrowed slot are those of an expert that has none: LOADING until `fill`.
    void adopt(int32_t slot, int32_t key);
    // The bytes of the expert in this LOADING slot are all there.
    void fill(int32_t slot) { state_[slot] = READY; }
    // The slot's expert has none any more.
    void drop(int32_t slot);
    // After a failure, when no read is under way: what was LOADING is not there, nothing is pinned.
    void recover();
    // Have so many slots. Those that go must not be pinned; their experts leave.
    void resize(int32_t num_slots);

    // Have `count` slots less: empty ones go, then those of the experts that leave first. The last
    // slots are removed. Copies there that stay move to slots that became empty: returns (source,
    // target) of each. No slot may be pinned at the end.
    std::vector<std::pair<int32_t, int32_t>> shrink(int32_t count);
    bool can_shrink(int32_t count) const;
    // The score of the last of `count` experts that would leave, infinite if so many cannot.
    double least_worth(int32_t count) const;
    // The expert in a READY and unpinned slot whose copy of `level` would be worth most: its key, or
    // NOWHERE.
    int32_t best_for(int32_t level) const;
    int32_t owner(int32_t slot) const { return owner_[slot]; }
    double score(int32_t key, int32_t level) const { return rule_->score(key, level); }

    // The keys of the experts in READY slots, the last to leave first.
    std::vector<int32_t> residents() const;
    // Those of `experts` (distinct, without a slot) that are worth one: all while slots are empty,
    // then those that the rule would not give up before others that may leave.
    std::vector<int32_t> outlasting(int32_t row, const std::vector<int32_t> &experts) const;

    const std::shared_ptr<ExpectedUse> &rule() const { return rule_; }
    const Uses &uses() const { return rule_->uses(); }
    void remember(const Uses &uses) { rule_->remember(uses); }
    // What is wrong with the books; null if nothing is.
    const char *fault() const;

  private:
    std::vector<int32_t> vacate(int32_t count, int32_t num_spare);
    void evict(int32_t count, std::vector<int32_t> &vacated);
    std::vector<int32_t> held() const;
    std::vector<int32_t> first_to_leave(std::vector<int32_t> keys, size_t count) const;

    std::shared_ptr<ExpectedUse> rule_;
    const int32_t level_;
    std::vector<int32_t> slot_of_;  // by key
    std::vector<int32_t> owner_;    // by slot: a key, or NOWHERE
    std::vector<uint8_t> state_;
    std::vector<int32_t> pins_;
    int32_t num_pinned_ = 0;
};

}  // namespace haversack
