// Experts of a batch that find no slot of their own: a matrix of theirs goes through free slots, some
// experts after the others. It is read at most once.
#pragma once

#include <deque>
#include <list>
#include <vector>

#include "layer.hpp"
#include "products.hpp"
#include "slots.hpp"

namespace haversack {

// Experts whose matrix is read, multiplied and forgotten together.
struct Wave {
    std::vector<int32_t> positions, slots;  // in the choice, and where each one's matrix comes to
    std::vector<Read *> reads;
};

// Waves use half the free slots each: one is read while the other is multiplied. Where a single slot is
// free, each expert is read into it after the last one was multiplied.
class Waves {
  public:
    // Borrows the slots and starts the first reads, of `matrix` of the experts at `positions`.
    Waves(Readers &readers, Slots &slots, const Matrix &matrix, const Choice &choice,
          std::vector<int32_t> positions);
    // No read is under way any more.
    ~Waves() { readers_.drain(); }
    Waves(const Waves &) = delete;

    // Returns the next wave, whose reads are under way; null after the last one, whose slots are free
    // again. The one before it was multiplied.
    const Wave *next();

  private:
    void start();

    Readers &readers_;
    Slots &slots_;
    const Matrix &matrix_;
    const Choice &choice_;
    const std::vector<int32_t> positions_;
    std::vector<int32_t> borrowed_;
    size_t wave_size_, num_waves_, num_lots_;  // a lot: slots for a wave
    std::deque<Wave> waves_;                   // that were started
    std::list<Read> reads_;
    size_t num_given_ = 0;
};

}  // namespace haversack
