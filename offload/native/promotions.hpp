// Which experts move from the host's slots to a device's: plain integers; others move the bytes.
// tests/offload/test_promotions.py has the same rule in Python, and holds both against each other.
#pragma once

#include <optional>

#include "pool.hpp"

namespace haversack {

// An expert's copy moves up: its slot on the host is pinned, the one on the device is LOADING. If another
// one is `leaving` the device for the host, that goes first, and until then stays READY on the device: its
// slot there is pinned, and `left_slot` of the host's is borrowed for it.
struct Promotion {
    int32_t key, host_slot, device_slot;
    int32_t leaving = NOWHERE, left_slot = NOWHERE;
};

class Promotions {
  public:
    // With `is_exclusive` an expert that has moved leaves its slot on the host, and one that leaves the
    // device moves to the host.
    Promotions(Pool &pool, Slots &device, bool is_exclusive)
        : pool_(pool), device_(device), is_exclusive_(is_exclusive) {}

    // The next expert to move, between passes: the one that is used most of those on no device, if a
    // slot is empty or an expert on the device is used less by a margin. That one leaves. Two slots of
    // the host's at most are pinned for it.
    std::optional<Promotion> next();
    // The bytes of the expert that is leaving are all on the host: its slot is the coming one's.
    void take_down(Promotion &promotion);
    // Its bytes are all there, or the copies were given up.
    void finish(const Promotion &promotion, bool came);

  private:
    int32_t most_used() const;
    int32_t least_used() const;
    bool is_worth_a_slot(int32_t key) const;
    int32_t claim(int32_t key);

    Pool &pool_;
    Slots &device_;
    const bool is_exclusive_;
};

}  // namespace haversack
