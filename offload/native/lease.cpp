// Leases: a layer's chosen experts get slots for the time of a call, at the levels of the rule.
#include "engine.hpp"

#include <algorithm>

namespace haversack {

// At which level each chosen expert is wanted: the best that any row wants. Where the rows' weights are
// not known, that is HIGH.
void Engine::wish(const Call &call) {
    const Choice &choice = call.choice;
    wanted_.clear();
    if (!low_.exist()) return;
    if (call.weights)
        low_.sample((const float *)call.weights->data, choice.num_rows, choice.num_used);
    if (call.is_batch()) {
        std::vector<int32_t> votes;
        for (size_t i = 0; i < choice.experts.size(); i++) votes.push_back(choice.count(i));
        wanted_ = batch_levels(votes, low_.batch_low_share);
    } else if (call.weights) {
        wanted_ = levels_of_rows(choice, (const float *)call.weights->data);
    }
    for (size_t i = 0; i < wanted_.size(); i++)
        if (wanted_[i] == LOW && !low_.has(call.number, choice.experts[i])) wanted_[i] = HIGH;
}

std::vector<int32_t> Engine::levels_of_rows(const Choice &choice, const float *weights) const {
    std::vector<int32_t> of_pairs, best(choice.experts.size(), SKIP);
    for (int64_t row = 0; row < choice.num_rows; row++, weights += choice.num_used) {
        const auto levels = row_levels({weights, weights + choice.num_used}, low_.thresholds);
        of_pairs.insert(of_pairs.end(), levels.begin(), levels.end());
    }
    for (size_t i = 0; i < best.size(); i++)
        for (int32_t at = choice.starts[i]; at < choice.starts[i + 1]; at++)
            best[i] = std::min(best[i], of_pairs[choice.pairs[at]]);
    return best;
}

// Whether all chosen experts find a slot. Those that find no LOW one take a HIGH one.
bool Engine::fits(const Call &call) const {
    const Pool &pool = pools_[call.layer.pool];
    int32_t num_high = call.choice.experts.size(), num_low = 0;
    for (size_t i = 0; i < call.choice.experts.size(); i++) num_high -= is_elsewhere(i);
    for (size_t i = 0; i < wanted_.size(); i++) {
        if (is_elsewhere(i)) continue;
        const Copy copy = pool.find(call.layer.row, call.choice.experts[i], wanted_[i]);
        const bool is_skipped = copy.slot == NOWHERE && wanted_[i] == SKIP;
        num_high -= is_skipped || copy.level == LOW;
        num_low += !is_skipped && copy.level == LOW;
    }
    return num_high + std::max(0, num_low - pool.low.num_slots()) <= pool.high.num_slots();
}

void Engine::Lease::clear() {
    levels.clear();
    slots.clear();
    absent_at.clear();
    late.clear();
    num_not_high = num_elsewhere = 0;
}

// Give each chosen expert a slot, pinned, and start the reads of those that are not there.
bool Engine::take_lease(const Call &call, Lease &lease) {
    const int64_t needed_before = prefetcher_->counts.needed;
    lease.clear();
    lease.coming = prefetcher_->settle(call.number, call.choice.experts, wanted_);
    sort_experts(call, lease);
    if (state.failure) return false;
    pools_[call.layer.pool].high.use(call.layer.row, call.choice.experts, wanted_);
    if (low_.exist()) choose_read_levels(call, lease);
    const int64_t num_absent = lease.absent_at.size();
    if (!claim(call, lease, HIGH) || (low_.exist() && !claim(call, lease, LOW))) return false;
    prefetcher_->note_choice(call.number, num_absent, needed_before);
    start_reads(call, lease);
    if (call.is_batch()) return true;
    prefetcher_->go_on_warming();
    calls_since_read_ = lease.late.empty() ? calls_since_read_ + 1 : 0;
    return true;
}

// Pin those that are there; note those that are coming, and those that are absent.
void Engine::sort_experts(const Call &call, Lease &lease) {
    Pool &pool = pools_[call.layer.pool];
    for (size_t i = 0; i < call.choice.experts.size(); i++) {
        const int32_t expert = call.choice.experts[i];
        if (is_elsewhere(i)) {
            lease.add_elsewhere();
            state.hits++;
            continue;
        }
        Copy copy = pool.find(call.layer.row, expert, wanted(i));
        const auto prefetch = std::find_if(lease.coming.begin(), lease.coming.end(),
                                           [&](const Prefetch &one) { return one.expert == expert; });
        const bool is_coming = prefetch != lease.coming.end();
        if (copy.level == LOW && copy.slot != NOWHERE && !is_coming && !pool.low.is_ready(copy.slot)) {
            wanted_[i] = HIGH;  // that read was given up, and has not ended
            copy = {HIGH, NOWHERE};
        }
        const bool is_skipped = copy.slot == NOWHERE && wanted(i) == SKIP;
        lease.levels.push_back(is_skipped ? SKIP : copy.level);
        lease.slots.push_back(copy.slot);
        if (is_skipped) {
            state.misses++;
            continue;
        }
        if (copy.slot == NOWHERE || is_coming) {
            lease.add_late(i, call.layer.num_matrices, is_coming ? prefetch->reads : nullptr);
            continue;
        }
        Slots &slots = pool.level(copy.level);
        if (!slots.is_ready(copy.slot)) {
            fail(BOOKS_WRONG);
            return;
        }
        slots.pin(copy.slot);
        state.hits++;
    }
    state.misses += lease.late.size();
}

void Engine::Lease::add_elsewhere() {
    levels.push_back(ELSEWHERE);
    slots.push_back(NOWHERE);
    num_elsewhere++;
}

// The expert at `position` is not there; `coming` are the reads of its prefetch, if there is one.
void Engine::Lease::add_late(int32_t position, int32_t num_matrices, Read *coming) {
    if (!coming) absent_at.push_back(position);
    Late &one = late.emplace_back();
    one.position = position;
    one.is_whole = true;
    for (int32_t m = 0; m < num_matrices; m++) one.reads[m] = coming ? &coming[m] : &one.own[m];
}

// Absent experts are read at the level at which they are wanted. But while HIGH slots are unused, LOW
// ones are read HIGH, and so are those for which there is no LOW slot.
void Engine::choose_read_levels(const Call &call, Lease &lease) {
    Pool &pool = pools_[call.layer.pool];
    std::vector<int32_t> levels;
    for (int32_t position : lease.absent_at) levels.push_back(wanted(position));
    levels = pool.read_levels(levels);
    const auto num_low = std::count(levels.begin(), levels.end(), LOW);
    if (num_low > pool.low.num_unpinned()) prefetcher_->withdraw();
    int32_t room = pool.low.num_unpinned();
    for (size_t i = 0; i < levels.size(); i++) {
        const bool is_low = levels[i] == LOW && room-- > 0;
        lease.levels[lease.absent_at[i]] = is_low ? LOW : HIGH;
    }
    for (Late &late : lease.late)
        late.is_whole = lease.levels[late.position] == HIGH || !low_.has_digests();
    for (int32_t level : lease.levels) lease.num_not_high += level == LOW || level == SKIP;
}

// Give the absent experts that are read at `level` their slots.
bool Engine::claim(const Call &call, Lease &lease, int32_t level) {
    Slots &slots = pools_[call.layer.pool].level(level);
    lease.absent.clear();
    for (int32_t position : lease.absent_at)
        if (lease.levels[position] == level) lease.absent.push_back(call.choice.experts[position]);
    const int32_t count = lease.absent.size();
    if (count > slots.num_unpinned()) withdraw();
    if (count > slots.num_unpinned()) return fail(BOOKS_WRONG), false;
    const auto claimed = slots.claim(call.layer.row, lease.absent);
    auto next = claimed.begin();
    for (int32_t position : lease.absent_at)
        if (lease.levels[position] == level) lease.slots[position] = *next++;
    return true;
}

// Every missing expert's first matrix is read before any one's second: products go in order.
void Engine::start_reads(const Call &call, Lease &lease) {
    std::vector<Read *> started;
    for (int32_t m = 0; m < call.layer.num_matrices; m++) {
        for (Late &late : lease.late) {
            if (late.reads[m] != &late.own[m]) continue;
            const int32_t expert = call.choice.experts[late.position];
            const Matrix &matrix = call.layer.matrices[lease.levels[late.position]][m];
            matrix.place(late.own[m], expert, lease.slots[late.position], false);
            started.push_back(&late.own[m]);
        }
    }
    readers_.submit(started.data(), started.size());
}

// Before a LOW copy is multiplied all of it must be there, because one checksum covers it.
Read *Engine::Late::read_before(int32_t index, int32_t num_matrices) const {
    if (is_whole) return reads[index];
    for (int32_t m = 0; m < num_matrices; m++)
        if (!reads[m]->came()) return reads[m];
    return reads[index];
}

// Whether a copy whose reads came has the bytes that it should have.
bool Engine::is_whole(const Call &call, const Lease &lease, Late &late) {
    const int32_t expert = call.choice.experts[late.position];
    if (!late.is_whole)
        late.is_whole = low_.is_whole({BASE, call.number, expert}, lease.slots[late.position]);
    return late.is_whole;
}

// The LOW copy of a missing expert is damaged: read the HIGH one.
bool Engine::read_high_instead(const Call &call, Lease &lease, Late &late) {
    Pool &pool = pools_[call.layer.pool];
    int32_t &slot = lease.slots[late.position];
    pool.low.drop(slot);
    pool.low.unpin(slot);
    slot = NOWHERE;
    if (pool.high.num_unpinned() == 0) withdraw();
    if (pool.high.num_unpinned() == 0) return fail(NO_SLOT), false;
    slot = pool.high.claim(call.layer.row, {call.choice.experts[late.position]})[0];
    lease.levels[late.position] = HIGH;
    late.is_whole = true;
    std::vector<Read *> reads;
    for (int32_t m = 0; m < call.layer.num_matrices; m++) {
        const Matrix &matrix = call.layer.matrices[HIGH][m];
        matrix.place(late.own[m], call.choice.experts[late.position], slot, false);
        reads.push_back(late.reads[m] = &late.own[m]);
    }
    readers_.submit(reads.data(), reads.size());
    return true;
}

// Unpin the experts: those whose matrices all came stay, the others lose their slot.
void Engine::release(const Call &call, Lease &lease) {
    Pool &pool = pools_[call.layer.pool];
    if (lease.num_not_high > 0 && !state.failure) count_levels(call, lease);
    for (Late &late : lease.late) {
        const int32_t level = lease.levels[late.position], slot = lease.slots[late.position];
        readers_.settle(late.reads, call.layer.num_matrices);
        if (slot == NOWHERE) continue;
        const bool came = std::all_of(late.reads, late.reads + call.layer.num_matrices,
                                      [](const Read *read) { return read->came(); });
        if (came && is_whole(call, lease, late)) pool.fill(level, slot);
        else pool.level(level).drop(slot);
    }
    for (size_t i = 0; i < lease.slots.size(); i++)
        if (lease.slots[i] != NOWHERE) (lease.levels[i] == LOW ? pool.low : pool.high).unpin(lease.slots[i]);
}

void Engine::count_levels(const Call &call, const Lease &lease) {
    const int64_t high_bytes = call.layer.expert_bytes(HIGH), low_bytes = call.layer.expert_bytes(LOW);
    for (int32_t level : lease.levels) {
        state.low += level == LOW;
        state.skipped += level == SKIP;
        state.saved_bytes += level == SKIP ? high_bytes : 0;
    }
    for (const Late &late : lease.late)
        if (lease.levels[late.position] == LOW) state.saved_bytes += high_bytes - low_bytes;
}

// ------------------------------------------------------------------ between passes
bool Engine::balance() {
    if (!low_.exist() || state.misses == misses_before_) return false;
    misses_before_ = state.misses;
    bool changed = false;
    for (size_t number = 0; number < pools_.size(); number++) {
        Pool &pool = pools_[number];
        const int32_t num_high = pool.high.num_slots(), num_low = pool.low.num_slots();
        const Layer &layer = layer_at(layers_, number, 0);
        for (const Move &move : pool.balance())
            for (int32_t m = 0; m < layer.num_matrices; m++)
                layer.matrices[move.level][m].move(move.source, move.target);
        changed |= pool.high.num_slots() != num_high || pool.low.num_slots() != num_low;
    }
    return changed;
}

void Engine::resize_pool(int32_t number, int32_t num_slots) {
    withdraw();
    pools_[number].resize(num_slots);
    num_slots_[number] = num_slots;
}

}  // namespace haversack
