// Experts that lie on devices: their pairs are computed there while the host computes its own, and the
// rows meet in the last node of the layer's experts.
#include "engine.hpp"

namespace haversack {

bool Engine::add_tier(const TierPlan &plan) {
    try {
        auto tier = std::make_unique<DeviceTier>(plan.device, plan.workspace_bytes, plan.num_staging);
        for (size_t number = 0; number < pools_.size(); number++) {
            std::vector<const Layer *> layers;
            for (const Layer &layer : layers_)
                if (layer.pool == (int32_t)number) layers.push_back(&layer);
            if (!tier->add_pool(pools_[number].high.rule(), layers, plan.num_slots[number])) return false;
        }
        for (size_t number = 0; number < pools_.size(); number++)
            if (Slots *slots = tier->slots(number)) {
                pools_[number].above.push_back(slots);
                if (plan.is_exclusive) pools_[number].exclusive.push_back(slots);
            }
        promoters_.emplace_back();
        if (!plan.is_fixed)
            promoters_.back() = std::make_unique<Promoter>(*tier, layers_, pools_, plan.is_exclusive,
                                                           num_used_);
        tiers_.push_back(std::move(tier));
        there_.emplace_back();
        streamed_.emplace_back();
        streamers_.push_back(std::make_unique<Streamer>(*tiers_.back()));
        return true;
    } catch (const DeviceError &) {
        return false;
    }
}

// -------------------------------------------------------------------- a layer
// Find the chosen experts that lie on devices.
void Engine::find_elsewhere(const Call &call) {
    tier_of_.clear();
    for (auto *positions : {&there_, &streamed_})
        for (auto &of_tier : *positions) of_tier.clear();
    is_form_known_ = !tiers_.empty() && form_.read(call.nodes, call.products, call.choice);
    if (!is_form_known_) return;
    for (size_t tier = 0; tier < tiers_.size(); tier++)
        for (int32_t position : chosen_there(call, tier)) {
            tier_of_.resize(call.choice.experts.size(), NOWHERE);
            tier_of_[position] = tier;
            slot_there_.resize(tier_of_.size());
            slot_there_[position] = tiers_[tier]->find(call.layer, call.choice.experts[position]);
            there_[tier].push_back(position);
            tiers_[tier]->state.hits++;
        }
}

// The positions of the chosen experts that a device computes. Times tell whether the host does it sooner,
// which has to read those first that lie on the device alone.
std::vector<int32_t> Engine::chosen_there(const Call &call, int32_t number) {
    DeviceTier &tier = *tiers_[number];
    const Slots &host = pools_[call.layer.pool].high;
    const int32_t most_pairs = tier.most_pairs(form_);
    std::vector<int32_t> found, on_both;  // first those that lie on the device alone
    for (size_t i = 0; i < call.choice.experts.size(); i++) {
        const int32_t expert = call.choice.experts[i];
        if (is_elsewhere(i) || call.choice.count(i) > most_pairs) continue;
        if (tier.find(call.layer, expert) == NOWHERE) continue;
        const bool is_here = host.state_of(call.layer.row, expert) == READY;
        (is_here ? on_both : found).push_back(i);
    }
    const int32_t num_lone = found.size();
    found.insert(found.end(), on_both.begin(), on_both.end());
    if (found.empty() || !promoters_[number] || call.choice.num_rows > 1) return found;
    const double read_s = readers_.s_per_byte() * call.layer.expert_bytes(HIGH);
    const int32_t count =
        tier.costs.most_worth(call.choice.experts.size(), found.size(), num_lone, read_s);
    Slots &there = *tier.slots(call.layer.pool);
    for (int32_t i = count; i < num_lone; i++) {  // the host reads it, and keeps it
        const int32_t slot = there.find(call.layer.row, call.choice.experts[found[i]]);
        if (!there.is_pinned(slot)) there.drop(slot);
    }
    found.resize(count);
    return found;
}

void Engine::note_host_s(const Call &call, const Lease &lease, double taken_s) {
    if (tiers_.empty() || call.choice.num_rows > 1 || !lease.late.empty() || lease.num_not_high) return;
    for (auto &tier : tiers_)
        tier->costs.note_host(lease.levels.size() - lease.num_elsewhere, taken_s);
}

// All other experts of the only row are there.
Status Engine::compute_those_here(const Call &call, const Lease &lease) {
    std::vector<int32_t> pairs, slots;
    for (size_t i = 0; i < lease.slots.size(); i++) {
        if (lease.levels[i] != HIGH) continue;
        pairs.push_back(call.choice.pairs[call.choice.starts[i]]);
        slots.push_back(lease.slots[i]);
    }
    those_here_.make(form_, call.nodes, call.choice, pairs, slots, call.layer);
    const auto &nodes = those_here_.nodes();
    const Status status = compute_nodes(nodes.data(), nodes.size(), call.cpu);
    those_here_.spread(form_, pairs);
    skip(call, lease, form_.result);
    return status;
}

// Where a layer is begun a second time, devices go on with what they began.
bool Engine::start_tiers(const Call &call) {
    for (size_t tier = 0; tier < tiers_.size(); tier++)
        if (!streamers_[tier]->is_running() && !tiers_[tier]->is_running() && !start_tier(call, tier))
            return false;
    return true;
}

// What one graph computes is begun at once. The rest needs a thread, and inputs that outlive their nodes.
bool Engine::start_tier(const Call &call, int32_t number) {
    std::vector<Portion> found = portions(call, number);
    if (found.empty()) return true;
    try {
        if (tiers_[number]->has_failed) return lose_tier(number) == SUCCESS;
        if (found.size() > 1 || found[0].host_slot != NOWHERE) {
            form_.keep_inputs(kept_inputs_);
            streamers_[number]->begin(call.layer, form_, call.choice, std::move(found));
            return true;
        }
        if (tiers_[number]->start(call.layer, form_, call.choice, found[0].pairs, found[0].slots))
            return true;
    } catch (const DeviceError &) {
    }
    return lose_tier(number) == SUCCESS;
}

// What a device computes for the call: of the experts that lie there as many at once as one graph can take,
// then each that is copied. All rows of an expert are computed together, as the host does it.
std::vector<Portion> Engine::portions(const Call &call, int32_t number) const {
    const DeviceTier &tier = *tiers_[number];
    const size_t most_pairs = tier.most_pairs(form_);
    std::vector<Portion> found;
    const auto add = [&](int32_t position) {
        const int32_t *first = &call.choice.pairs[call.choice.starts[position]];
        std::vector<int32_t> &pairs = found.back().pairs;
        pairs.insert(pairs.end(), first, first + call.choice.count(position));
    };
    for (int32_t position : there_[number]) {
        if (found.empty() || found.back().pairs.size() + call.choice.count(position) > most_pairs)
            found.emplace_back();
        add(position);
        found.back().slots.resize(found.back().pairs.size(), slot_there_[position]);
    }
    // Beside the last one nothing is copied, so its time is known: that of many rows tells more.
    for (auto position = streamed_[number].rbegin(); position != streamed_[number].rend(); ++position) {
        found.emplace_back().host_slot = lease_.slots[*position];
        add(*position);
    }
    return found;
}

// Wait for the devices, and write the rows that they computed.
Status Engine::finish_tiers(const Call &call) {
    for (size_t tier = 0; tier < tiers_.size(); tier++) {
        try {
            if (streamers_[tier]->is_running()) {
                if (!streamers_[tier]->finish()) return lose_tier(tier);
            } else if (tiers_[tier]->is_running()) {
                tiers_[tier]->wait();
            }
            tiers_[tier]->collect(form_.result, call.choice);
        } catch (const DeviceError &) {
            return lose_tier(tier);
        }
    }
    return SUCCESS;
}

// A device failed: the pass fails, and later ones do without it.
Status Engine::lose_tier(int32_t tier) {
    if (promoters_[tier]) promoters_[tier]->withdraw();
    tiers_[tier]->lose();
    tiers_[tier]->has_failed = false;
    promoters_[tier].reset();
    state.failed_tier = tier;
    return fail(DEVICE_FAILED);
}

// A pass has failed: nothing is computed for it any more.
void Engine::abandon_tiers() {
    for (auto &promoter : promoters_)
        if (promoter) promoter->withdraw();
    for (size_t tier = 0; tier < tiers_.size(); tier++) abandon_tier(tier);
}

void Engine::abandon_tier(int32_t tier) {
    streamers_[tier]->give_up();
    try {
        tiers_[tier]->abandon();
    } catch (const DeviceError &) {
        tiers_[tier]->lose();
        tiers_[tier]->has_failed = true;  // the next pass tells
        promoters_[tier].reset();
    }
}

void Engine::withdraw() {
    prefetcher_->withdraw();
    for (auto &promoter : promoters_)
        if (promoter) promoter->withdraw();
}

// Returns false if a device has failed that no error has told of: this pass does.
bool Engine::all_tiers_work() {
    for (size_t tier = 0; tier < tiers_.size(); tier++)
        if (tiers_[tier]->has_failed) return lose_tier(tier) == SUCCESS;
    return true;
}

// A pass has ended: experts move up.
void Engine::promote() {
    for (auto &promoter : promoters_)
        if (promoter) promoter->go_on();
}

// ------------------------------------------------------------------------ load
Failure Engine::fill_tiers() {
    for (size_t number = 0; number < tiers_.size(); number++)
        for (int32_t expert = 0, found = !promoters_[number]; found; expert++) {
            found = 0;
            for (const Layer &layer : layers_) {
                Slots *slots = tiers_[number]->slots(layer.pool);
                if (expert >= pools_[layer.pool].high.num_experts || !slots) continue;
                if (slots->num_empty() == 0) continue;
                found = 1;
                if (pools_[layer.pool].is_above(layer.row, expert)) continue;
                if (!fill_slot(layer, expert, number)) return (Failure)state.failure;
            }
        }
    return NO_FAILURE;
}

// Read an expert into a slot of the host that is empty or may be taken, and copy it from there.
bool Engine::fill_slot(const Layer &layer, int32_t expert, int32_t number) {
    DeviceTier &tier = *tiers_[number];
    Slots &slots = *tier.slots(layer.pool), &host = pools_[layer.pool].high;
    const int32_t borrowed = host.borrow(1)[0];
    const int32_t slot = slots.claim(layer.row, {expert})[0];
    Read reads[MAX_MATRICES];
    std::vector<Read *> started;
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        layer.matrices[HIGH][m].place(reads[m], expert, borrowed, false);
        started.push_back(&reads[m]);
    }
    readers_.submit(started.data(), started.size());
    const bool ended = wait(started, true);
    readers_.drain();
    for (int32_t m = 0; m < layer.num_matrices && !state.failure; m++) {
        const Matrix &matrix = layer.matrices[HIGH][m];
        if (!ended) fail(STOPPED);
        else if (!reads[m].came()) fail_read(&reads[m]);
        else if (!tier.write(layer, m, slot, matrix.in_slot(borrowed), 0, matrix.num_bytes))
            state.failed_tier = number, fail(DEVICE_FAILED);
    }
    host.unpin(borrowed);
    if (state.failure) slots.drop(slot);
    else slots.fill(slot);
    slots.unpin(slot);
    return !state.failure;
}

// ------------------------------------------------------------------- integrity
const char *Engine::tiers_fault() {
    for (auto &tier : tiers_)
        if (tier->is_running()) return "a device computes between passes";
    for (size_t number = 0; number < pools_.size(); number++) {
        const Pool &pool = pools_[number];
        int32_t num_moving = 0;
        for (size_t tier = 0; tier < tiers_.size(); tier++) {
            const int32_t moving = promoters_[tier] ? promoters_[tier]->num_under_way(number) : 0;
            if (const char *fault = tiers_[tier]->fault(number, moving)) return fault;
            num_moving += moving;
        }
        if (pool.high.num_pinned_ready() != num_moving) return "a slot is pinned for no promotion";
        if (pool.is_twice_above()) return "two devices have slots for the same expert";
        if (!pool.doubles().empty()) return "an expert on an exclusive device lies on the host too";
    }
    return nullptr;
}

}  // namespace haversack
