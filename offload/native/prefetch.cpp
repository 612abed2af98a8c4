#include "prefetch.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_map>

namespace haversack {

namespace {

constexpr size_t WARM_PORTION = 8;  // warm experts under way while the model works

bool contains(const std::vector<int32_t> &experts, int32_t expert) {
    return std::find(experts.begin(), experts.end(), expert) != experts.end();
}

}  // namespace

bool Prefetch::done() const {
    return std::all_of(reads, reads + num_reads, [](const Read &read) { return read.done(); });
}

bool Prefetch::came() const {
    return std::all_of(reads, reads + num_reads, [](const Read &read) { return read.came(); });
}

bool Prefetch::failed() const {
    return std::any_of(reads, reads + num_reads, [](const Read &read) { return read.state == FAILED; });
}

std::vector<Read *> Prefetch::all() {
    std::vector<Read *> found;
    for (int32_t i = 0; i < num_reads; i++) found.push_back(&reads[i]);
    return found;
}

Prefetcher::Prefetcher(const std::vector<Layer> &layers, std::vector<Slots> &pools, Readers &readers,
                       int32_t reserve, int32_t num_ranks, int32_t num_layers)
    : layers_(layers), pools_(pools), readers_(readers), reserve_(reserve),
      chances_(num_ranks, num_layers), coming_(num_layers), predictions_(num_layers),
      absent_(num_layers) {}

// ---------------------------------------------------------------- predictions
int32_t Prefetcher::predicted(int32_t layer, const std::vector<int32_t> &experts, int depth) {
    const Slots &slots = pool_of(layer);
    std::vector<int32_t> held, worth;
    note_absent(layer);
    for (size_t rank = 0; rank < experts.size(); rank++) {
        const int32_t slot = slots.find(layers_[layer].row, experts[rank]);
        if (slot != NOWHERE) {
            held.push_back(slot);
            continue;
        }
        predictions_[layer].push_back({experts[rank], depth, (int32_t)rank});
        if (chances_.is_worth_it(depth, rank)) worth.push_back(experts[rank]);
    }
    const int32_t num_worth = worth.size();
    start(layer, std::move(worth), held, slots.num_slots());
    return num_worth;
}

void Prefetcher::predicted_for_batch(int32_t layer, const std::vector<int32_t> &experts) {
    const Slots &slots = pool_of(layer);
    std::vector<int32_t> held, absent;
    note_absent(layer);
    for (int32_t expert : experts) {
        const int32_t slot = slots.find(layers_[layer].row, expert);
        if (slot == NOWHERE) absent.push_back(expert);
        else held.push_back(slot);
    }
    start(layer, std::move(absent), held, std::max(0, slots.num_slots() - slots.num_experts));
}

// The layer may be predicted more than once in a pass.
void Prefetcher::note_absent(int32_t layer) {
    const Slots &slots = pool_of(layer);
    absent_[layer].resize(slots.num_experts);
    for (int32_t expert = 0; expert < slots.num_experts; expert++)
        if (slots.find(layers_[layer].row, expert) == NOWHERE) absent_[layer][expert] = true;
}

// Pin the likely experts first, so that slots for less likely ones are not taken from them.
void Prefetcher::start(int32_t layer, std::vector<int32_t> absent, const std::vector<int32_t> &held,
                       int32_t most) {
    Slots &slots = pool_of(layer);
    for (int32_t slot : held) slots.pin(slot);
    const int32_t room = std::min(std::max(0, slots.num_unpinned() - reserve_), most);
    if ((int32_t)absent.size() > room) absent.resize(room);
    const auto claimed = slots.claim(layers_[layer].row, absent);
    for (int32_t slot : held) slots.unpin(slot);
    counts.started += absent.size();
    for (size_t i = 0; i < absent.size(); i++) read(coming_[layer], layer, absent[i], claimed[i]);
}

// An expert's matrices are read one after the other, so that the likeliest expert is whole first.
void Prefetcher::read(Prefetches &list, int32_t layer, int32_t expert, int32_t slot) {
    Prefetch &prefetch = list.emplace_back();
    prefetch.layer = layer;
    prefetch.expert = expert;
    prefetch.slot = slot;
    prefetch.num_reads = layers_[layer].num_matrices;
    for (int32_t m = 0; m < prefetch.num_reads; m++)
        layers_[layer].matrices[m].place(prefetch.reads[m], expert, slot, true);
    readers_.submit(prefetch.all().data(), prefetch.num_reads);
}

// No read of it is under way any more: the expert stays if it came whole.
void Prefetcher::finish(Prefetch &prefetch) {
    Slots &slots = pool_of(prefetch.layer);
    if (prefetch.came()) slots.fill(prefetch.slot);
    else slots.drop(prefetch.slot);
    slots.unpin(prefetch.slot);
}

// Its layer chose it: what is still to come is demanded, or given up where not all of it can come any
// more. Returns whether it is still coming.
bool Prefetcher::demand(Prefetch &prefetch) {
    const auto reads = prefetch.all();
    if (prefetch.is_cancelled || prefetch.failed()) readers_.settle(reads.data(), reads.size());
    else readers_.demand(reads.data(), reads.size());
    return !prefetch.done();
}

// Its layer did not choose it: reads that have not begun never do.
void Prefetcher::cancel(Prefetch &prefetch) {
    if (prefetch.is_cancelled) return;
    const auto reads = prefetch.all();
    readers_.cancel(reads.data(), reads.size());
    prefetch.is_cancelled = true;
}

Prefetches Prefetcher::settle(int32_t layer, const std::vector<int32_t> &chosen) {
    judge_predictions(layer, chosen);
    Prefetches coming;
    for (auto next = coming_[layer].begin(); next != coming_[layer].end();) {
        const auto prefetch = next++;
        const bool right = contains(chosen, prefetch->expert);
        counts.right += right && !prefetch->is_cancelled;
        counts.needed += right;
        if (right) demand(*prefetch);
        else cancel(*prefetch);
        if (prefetch->done()) {
            finish(*prefetch);
            coming_[layer].erase(prefetch);
        } else if (right) {
            coming.splice(coming.end(), coming_[layer], prefetch);
        }
    }
    settle_warm(layer, chosen, coming);
    return coming;
}

void Prefetcher::judge_predictions(int32_t layer, const std::vector<int32_t> &chosen) {
    for (const Prediction &one : predictions_[layer])
        chances_.note(one.depth, one.rank, contains(chosen, one.expert));
    predictions_[layer].clear();
    if (!absent_[layer].empty())
        for (int32_t expert : chosen) counts.possible += absent_[layer][expert];
    absent_[layer].clear();
}

void Prefetcher::note_choice(int32_t layer, int64_t num_absent, int64_t needed_before) {
    counts.needed += num_absent;
    chances_.note_pass(layer, counts.needed > needed_before);
}

// ------------------------------------------------------------------ warm start
// Before the first row everything is asked for that has room, and the readers go on by themselves.
// That queue is too long for a model that works, so the first layer asked for cuts it.
void Prefetcher::start_warm(std::deque<std::pair<int32_t, int32_t>> experts) {
    waiting_ = std::move(experts);
    begin_warm(waiting_.size());
}

void Prefetcher::go_on_warming() {
    if (!waiting_.empty() && warming_.size() < WARM_PORTION)
        begin_warm(WARM_PORTION - warming_.size());
}

// Have the next `count` of those that wait read, as far as there are slots that no row needs. Each is
// asked for once: it gets a slot that is empty or whose expert is worth less, or is left out.
void Prefetcher::begin_warm(size_t count) {
    std::vector<std::pair<int32_t, int32_t>> chosen;
    std::unordered_map<int32_t, std::vector<int32_t>> by_layer;
    std::vector<int32_t> room;
    for (const Slots &slots : pools_) room.push_back(slots.num_unpinned() - reserve_);
    for (count = std::min(count, waiting_.size()); count > 0; count--) {
        const auto [layer, expert] = waiting_.front();
        waiting_.pop_front();
        const bool is_held = pool_of(layer).find(layers_[layer].row, expert) != NOWHERE;
        if (is_held || room[layers_[layer].pool]-- <= 0) continue;
        chosen.emplace_back(layer, expert);
        by_layer[layer].push_back(expert);
    }
    for (const auto &[layer, experts] : by_layer) {
        Slots &slots = pool_of(layer);
        const auto staying = slots.outlasting(layers_[layer].row, experts);
        slots.claim(layers_[layer].row, staying);
    }
    for (const auto &[layer, expert] : chosen) {
        const int32_t slot = pool_of(layer).find(layers_[layer].row, expert);
        if (slot != NOWHERE) read(warming_, layer, expert, slot);
    }
}

// Have all but the first `count` of those under way wait again. Reads begin in order, so only the
// first few can be half there, and those are waited for.
void Prefetcher::cut_warm(size_t count) {
    Prefetches cut;
    count = std::min(count, warming_.size());
    cut.splice(cut.end(), warming_, std::next(warming_.begin(), count), warming_.end());
    std::vector<Read *> reads;
    for (Prefetch &prefetch : cut)
        for (Read *read : prefetch.all()) reads.push_back(read);
    readers_.settle(reads.data(), reads.size());
    for (auto prefetch = cut.rbegin(); prefetch != cut.rend(); ++prefetch) {
        finish(*prefetch);
        if (!prefetch->came() && !prefetch->failed())
            waiting_.emplace_front(prefetch->layer, prefetch->expert);
    }
}

// What has come is ready. Those that `layer` chose are moved to `coming`, or are ready too.
void Prefetcher::settle_warm(int32_t layer, const std::vector<int32_t> &chosen, Prefetches &coming) {
    if (warming_.size() > WARM_PORTION) cut_warm(WARM_PORTION);
    for (auto next = warming_.begin(); next != warming_.end();) {
        const auto prefetch = next++;
        const bool right = prefetch->layer == layer && contains(chosen, prefetch->expert);
        if (prefetch->done() || (right && !demand(*prefetch))) {
            finish(*prefetch);
            warming_.erase(prefetch);
        } else if (right) {
            coming.splice(coming.end(), warming_, prefetch);
        }
    }
}

std::vector<std::pair<int32_t, int32_t>> Prefetcher::not_warm() const {
    return {waiting_.begin(), waiting_.end()};
}

// --------------------------------------------------------------------- the end
void Prefetcher::withdraw() {
    drop_predictions();
    cut_warm(0);
}

void Prefetcher::drop_predictions() {
    for (Prefetches &list : coming_) {
        for (Prefetch &prefetch : list) {
            const auto reads = prefetch.all();
            readers_.settle(reads.data(), reads.size());
            finish(prefetch);
        }
        list.clear();
    }
    clear_predictions();
}

void Prefetcher::clear_predictions() {
    for (auto &absent : absent_) absent.clear();
    for (auto &predictions : predictions_) predictions.clear();
}

void Prefetcher::forget() {
    for (Prefetches &list : coming_) list.clear();
    clear_predictions();
    for (const Prefetch &prefetch : warming_)
        if (!prefetch.failed()) waiting_.emplace_back(prefetch.layer, prefetch.expert);
    warming_.clear();
}

}  // namespace haversack
