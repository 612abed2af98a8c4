#include "waves.hpp"

#include <algorithm>

namespace haversack {

Waves::Waves(Readers &readers, Slots &slots, const Matrix &matrix, const Choice &choice,
             std::vector<int32_t> positions)
    : readers_(readers), slots_(slots), matrix_(matrix), choice_(choice),
      positions_(std::move(positions)) {
    const size_t num_free = slots.num_unpinned();
    wave_size_ = std::max<size_t>(1, num_free / 2);
    num_waves_ = (positions_.size() + wave_size_ - 1) / wave_size_;
    num_lots_ = std::min<size_t>(2, num_free / wave_size_);
    borrowed_ = slots.borrow(num_lots_ * wave_size_);
    while (waves_.size() < std::min(num_lots_, num_waves_)) start();
}

void Waves::start() {
    const size_t first = waves_.size() * wave_size_, lot = waves_.size() % num_lots_ * wave_size_;
    Wave &wave = waves_.emplace_back();
    for (size_t i = first; i < std::min(first + wave_size_, positions_.size()); i++) {
        wave.positions.push_back(positions_[i]);
        wave.slots.push_back(borrowed_[lot + i - first]);
        wave.reads.push_back(&reads_.emplace_back());
        matrix_.place(*wave.reads.back(), choice_.experts[positions_[i]], wave.slots.back(), false);
    }
    readers_.submit(wave.reads.data(), wave.reads.size());
}

const Wave *Waves::next() {
    while (waves_.size() < std::min(num_given_ + num_lots_, num_waves_)) start();
    if (num_given_ < num_waves_) return &waves_[num_given_++];
    for (int32_t slot : borrowed_) slots_.unpin(slot);
    return nullptr;
}

}  // namespace haversack
