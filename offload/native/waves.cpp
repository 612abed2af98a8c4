#include "waves.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "engine.hpp"

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

// ---------------------------------------------------------------- the engine's
// More experts than there are slots: those that are there stay, the others come matrix by matrix. These
// are HIGH, because a LOW copy can be checked only when all of it is there. Experts wanted LOW get LOW
// slots, as far as there are any.
Status Engine::compute_in_waves(const Call &call) {
    Lease &lease = lease_;
    withdraw();
    lease.clear();
    lease.levels.assign(call.choice.experts.size(), HIGH);
    lease.slots.assign(call.choice.experts.size(), NOWHERE);
    for (size_t i = 0; i < lease.levels.size(); i++)
        if (is_elsewhere(i)) lease.levels[i] = ELSEWHERE, lease.num_elsewhere++;
    if (!start_tiers(call)) return COMPUTE_FAILED;
    hold_high(call, lease);
    if (low_.exist() && !hold_low(call, lease)) return COMPUTE_FAILED;
    const int64_t num_held = lease.slots.size() -
                             std::count(lease.slots.begin(), lease.slots.end(), NOWHERE) -
                             lease.late.size();
    state.hits += num_held + lease.num_elsewhere;
    state.misses += lease.slots.size() - num_held - lease.num_elsewhere;
    auto multiply = [&](const Product &product) {
        if (lease.num_elsewhere > 0) skip(call, lease, call.nodes[product.at]);
        return multiply_in_waves(call, lease, product);
    };
    Status status = compute_nodes_between(call, std::ref(multiply));
    if (status == SUCCESS) status = finish_tiers(call);
    if (status == SUCCESS) release(call, lease);
    return status;
}

// Pin HIGH copies that are there, and leave slots for the waves.
void Engine::hold_high(const Call &call, Lease &lease) {
    Slots &slots = pools_[call.layer.pool].high;
    int32_t room = std::max(0, slots.num_unpinned() - std::max(1, num_used_));
    for (size_t i = 0; i < lease.slots.size(); i++) {
        const int32_t slot = slots.find(call.layer.row, call.choice.experts[i]);
        if (lease.levels[i] != HIGH || slot == NOWHERE || room-- <= 0) continue;
        slots.pin(slot);
        lease.slots[i] = slot;
    }
}

// Pin LOW copies that are wanted and there, and have others read into the LOW slots that are left.
bool Engine::hold_low(const Call &call, Lease &lease) {
    Slots &slots = pools_[call.layer.pool].low;
    std::vector<int32_t> absent;
    for (size_t i = 0; i < lease.slots.size(); i++) {
        const int32_t expert = call.choice.experts[i];
        if (lease.levels[i] != HIGH || lease.slots[i] != NOWHERE) continue;
        if (wanted(i) != LOW || !low_.has(call.number, expert)) continue;
        const int32_t slot = slots.find(call.layer.row, expert);
        if (slot == NOWHERE) absent.push_back(i);
        if (slot == NOWHERE || !slots.is_ready(slot)) continue;
        slots.pin(slot);
        lease.slots[i] = slot;
        lease.levels[i] = LOW;
        lease.num_not_high++;
    }
    absent.resize(std::min<size_t>(absent.size(), slots.num_unpinned()));
    for (int32_t position : absent) {
        lease.add_late(position, call.layer.num_matrices, nullptr);
        lease.late.back().is_whole = !low_.has_digests();
        lease.levels[position] = LOW;
        lease.num_not_high++;
    }
    if (!claim(call, lease, LOW)) return false;
    start_reads(call, lease);
    return true;
}

Status Engine::multiply_in_waves(const Call &call, Lease &lease, const Product &product) {
    std::vector<int32_t> there, there_slots, others;
    for (size_t i = 0; i < lease.slots.size(); i++) {
        if (lease.levels[i] != HIGH) continue;
        if (lease.slots[i] == NOWHERE) {
            others.push_back(i);
            continue;
        }
        there.push_back(i);
        there_slots.push_back(lease.slots[i]);
    }
    const Matrix &matrix = call.layer.matrices[HIGH][product.index];
    products_.begin(call.nodes[product.at], matrix, call.choice);
    std::optional<Waves> waves;
    if (!others.empty())
        waves.emplace(readers_, pools_[call.layer.pool].high, matrix, call.choice, others);
    if (Status status = products_.run(there, there_slots, call.cpu)) return status;
    if (Status status = waves ? multiply_waves(call, *waves) : SUCCESS) return status;
    return lease.num_not_high > 0 ? multiply_low(call, lease, product) : SUCCESS;
}

Status Engine::multiply_waves(const Call &call, Waves &waves) {
    while (const Wave *wave = waves.next()) {
        if (!wait(wave->reads, true)) return fail(STOPPED);
        for (Read *read : wave->reads)
            if (!read->came()) return fail_read(read);
        if (Status status = products_.run(wave->positions, wave->slots, call.cpu)) return status;
    }
    return SUCCESS;
}

// Those whose LOW copy is damaged, which shows before the first product, pass in waves as well.
Status Engine::multiply_low(const Call &call, Lease &lease, const Product &product) {
    std::vector<int32_t> positions, slots, damaged;
    if (!check_low(call, lease, damaged)) return COMPUTE_FAILED;
    for (size_t i = 0; i < lease.slots.size(); i++) {
        if (lease.levels[i] != LOW) continue;
        positions.push_back(i);
        slots.push_back(lease.slots[i]);
    }
    products_.begin(call.nodes[product.at], call.layer.matrices[LOW][product.index], call.choice);
    if (Status status = products_.run(positions, slots, call.cpu)) return status;
    if (damaged.empty()) return SUCCESS;
    const Matrix &matrix = call.layer.matrices[HIGH][product.index];
    products_.begin(call.nodes[product.at], matrix, call.choice);
    Waves waves(readers_, pools_[call.layer.pool].high, matrix, call.choice, damaged);
    return multiply_waves(call, waves);
}

// Wait until all LOW copies are there. Those that are `damaged` (positions) lose their slots.
bool Engine::check_low(const Call &call, Lease &lease, std::vector<int32_t> &damaged) {
    Slots &slots = pools_[call.layer.pool].low;
    for (Late &late : lease.late) {
        int32_t &slot = lease.slots[late.position];
        if (slot == NOWHERE) continue;  // it was damaged before
        const std::vector<Read *> reads(late.reads, late.reads + call.layer.num_matrices);
        if (!wait(reads, true)) return fail(STOPPED), false;
        for (Read *read : reads)
            if (!read->came()) return fail_read(read), false;
        if (is_whole(call, lease, late)) continue;
        slots.drop(slot);
        slots.unpin(slot);
        slot = NOWHERE;
        lease.levels[late.position] = HIGH;
        lease.num_not_high--;
        damaged.push_back(late.position);
    }
    return true;
}

}  // namespace haversack
