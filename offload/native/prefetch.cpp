#include "prefetch.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_map>

#include "ggml.hpp"
#include "nested.hpp"

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

Prefetcher::Prefetcher(const std::vector<Layer> &layers, std::vector<Pool> &pools, LowCopies &low,
                       Readers &readers, int32_t reserve, int32_t num_ranks)
    : layers_(layers), pools_(pools), low_(low), readers_(readers), reserve_(reserve),
      chances_(num_ranks, layers.size()), coming_(layers.size()), predictions_(layers.size()),
      absent_(layers.size()) {}

// ---------------------------------------------------------------- predictions
// Pin the likely experts first, so that slots for less likely ones are not taken from them.
int32_t Prefetcher::predicted(int32_t layer, const std::vector<int32_t> &experts, int depth,
                              const std::vector<int32_t> &levels) {
    Pool &pool = pool_of(layer);
    std::vector<Copy> held;
    std::vector<int32_t> worth, worth_levels;
    note_absent(layer);
    for (size_t rank = 0; rank < experts.size(); rank++) {
        const int32_t wanted = levels.empty() ? HIGH : levels[rank];
        if (pool.is_above(layers_[layer].row, experts[rank])) continue;
        const Copy copy = pool.find(layers_[layer].row, experts[rank], wanted);
        if (copy.slot != NOWHERE) {
            held.push_back(copy);
            continue;
        }
        predictions_[layer].push_back({experts[rank], depth, (int32_t)rank});
        if (wanted == SKIP || !chances_.is_worth_it(depth, rank)) continue;
        worth.push_back(experts[rank]);
        worth_levels.push_back(wanted);
    }
    for (const Copy &copy : held) pool.level(copy.level).pin(copy.slot);
    if (levels.empty()) {
        start(layer, worth, HIGH, pool.high.num_slots());
    } else {
        std::vector<int32_t> by_level[NUM_LEVELS];
        worth_levels = pool.read_levels(worth_levels);
        for (size_t i = 0; i < worth.size(); i++) by_level[worth_levels[i]].push_back(worth[i]);
        for (int32_t level : {HIGH, LOW})
            start(layer, by_level[level], level, pool.level(level).num_slots());
    }
    for (const Copy &copy : held) pool.level(copy.level).unpin(copy.slot);
    return worth.size();
}

void Prefetcher::predicted_for_batch(int32_t layer, const std::vector<int32_t> &experts) {
    Slots &slots = pool_of(layer).high;
    std::vector<int32_t> held, absent;
    note_absent(layer);
    for (int32_t expert : experts) {
        if (pool_of(layer).is_above(layers_[layer].row, expert)) continue;
        const int32_t slot = slots.find(layers_[layer].row, expert);
        if (slot == NOWHERE) absent.push_back(expert);
        else held.push_back(slot);
    }
    for (int32_t slot : held) slots.pin(slot);
    start(layer, absent, HIGH, std::max(0, slots.num_slots() - slots.num_experts));
    for (int32_t slot : held) slots.unpin(slot);
}

// The layer may be predicted more than once in a pass.
void Prefetcher::note_absent(int32_t layer) {
    const Pool &pool = pool_of(layer);
    absent_[layer].resize(pool.high.num_experts);
    for (int32_t expert = 0; expert < pool.high.num_experts; expert++)
        if (pool.find(layers_[layer].row, expert, LOW).slot == NOWHERE &&
            !pool.is_above(layers_[layer].row, expert))
            absent_[layer][expert] = true;
}

// Read copies of this level, at most `most`, the likeliest first.
void Prefetcher::start(int32_t layer, const std::vector<int32_t> &absent, int32_t level, int32_t most) {
    Slots &slots = pool_of(layer).level(level);
    const int32_t room = std::min(std::max(0, slots.num_unpinned() - reserve_), most);
    const size_t count = std::min<size_t>(absent.size(), room);
    const auto claimed = slots.claim(layers_[layer].row, {absent.begin(), absent.begin() + count});
    counts.started += count;
    for (size_t i = 0; i < count; i++) read(coming_[layer], layer, absent[i], {level, claimed[i]});
}

// An expert's matrices are read one after the other, so that the likeliest expert is whole first.
Prefetch &Prefetcher::read(Prefetches &list, int32_t layer, int32_t expert, Copy copy,
                           int32_t base_slot) {
    Prefetch &prefetch = list.emplace_back();
    prefetch.layer = layer;
    prefetch.expert = expert;
    prefetch.level = copy.level;
    prefetch.slot = copy.slot;
    prefetch.base_slot = base_slot;
    prefetch.num_reads = layers_[layer].num_matrices;
    for (int32_t m = 0; m < prefetch.num_reads; m++) {
        const Matrix &whole = layers_[layer].matrices[copy.level][m], &rest = layers_[layer].rests[m];
        const Matrix &matrix = base_slot != NOWHERE && rest.num_bytes > 0 ? rest : whole;
        matrix.place(prefetch.reads[m], expert, copy.slot, true);
    }
    readers_.submit(prefetch.all().data(), prefetch.num_reads);
    return prefetch;
}

// No read of it is under way any more: the expert stays if it came whole.
void Prefetcher::finish(Prefetch &prefetch) {
    Pool &pool = pool_of(prefetch.layer);
    Slots &slots = pool.level(prefetch.level);
    const bool is_whole = prefetch.came() && has_right_bytes(prefetch);
    if (prefetch.base_slot != NOWHERE) {
        if (is_whole) join(prefetch);
        pool.low.unpin(prefetch.base_slot);
    }
    if (is_whole) pool.fill(prefetch.level, prefetch.slot);
    else slots.drop(prefetch.slot);
    slots.unpin(prefetch.slot);
    counts.upgraded += is_whole && prefetch.is_upgrade;
}

bool Prefetcher::has_right_bytes(const Prefetch &prefetch) {
    if (prefetch.level == HIGH && prefetch.base_slot == NOWHERE) return true;
    const int32_t slice = prefetch.level == HIGH ? REST : BASE;
    return low_.is_whole({slice, prefetch.layer, prefetch.expert}, prefetch.slot);
}

// The rests have come, each at the end of its matrix's place.
void Prefetcher::join(const Prefetch &prefetch) const {
    const Layer &layer = layers_[prefetch.layer];
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        const Matrix &rest = layer.rests[m], &low = layer.matrices[LOW][m];
        if (rest.num_bytes == 0) continue;
        uint8_t *whole = layer.matrices[HIGH][m].in_slot(prefetch.slot);
        join_nested(rest.type, low.in_slot(prefetch.base_slot), rest.in_slot(prefetch.slot), whole,
                    low.num_bytes / ggml().type_size(low.type));
    }
}

// Whether what its layer chose is served by this copy once it is there.
bool Prefetcher::serves(const Prefetch &prefetch, const std::vector<int32_t> &chosen,
                        const std::vector<int32_t> &levels) const {
    const auto place = std::find(chosen.begin(), chosen.end(), prefetch.expert);
    if (place == chosen.end()) return false;
    const int32_t wanted = levels.empty() ? HIGH : levels[place - chosen.begin()];
    const Layer &layer = layers_[prefetch.layer];
    return pools_[layer.pool].find(layer.row, prefetch.expert, wanted).level == prefetch.level;
}

// Its layer chose it: what is still to come is demanded, or given up where not all of it can come any
// more. Returns whether it is still coming.
bool Prefetcher::demand(Prefetch &prefetch) {
    const auto reads = prefetch.all();
    const bool is_rest = prefetch.base_slot != NOWHERE;  // none can be multiplied before all are there
    if (is_rest || prefetch.is_cancelled || prefetch.failed()) readers_.settle(reads.data(), reads.size());
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

Prefetches Prefetcher::settle(int32_t layer, const std::vector<int32_t> &chosen,
                              const std::vector<int32_t> &levels) {
    judge_predictions(layer, chosen);
    Prefetches coming;
    for (auto next = coming_[layer].begin(); next != coming_[layer].end();) {
        const auto prefetch = next++;
        const bool right = serves(*prefetch, chosen, levels);
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
    settle_warm(layer, chosen, levels, coming);
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
    for (const Pool &pool : pools_) room.push_back(pool.high.num_unpinned() - reserve_);
    for (count = std::min(count, waiting_.size()); count > 0; count--) {
        const auto [layer, expert] = waiting_.front();
        waiting_.pop_front();
        const int32_t row = layers_[layer].row;
        const bool is_held =
            pool_of(layer).high.find(row, expert) != NOWHERE || pool_of(layer).is_above(row, expert);
        if (is_held || room[layers_[layer].pool]-- <= 0) continue;
        chosen.emplace_back(layer, expert);
        by_layer[layer].push_back(expert);
    }
    for (const auto &[layer, experts] : by_layer) {
        Slots &slots = pool_of(layer).high;
        const auto staying = slots.outlasting(layers_[layer].row, experts);
        slots.claim(layers_[layer].row, staying);
    }
    for (const auto &[layer, expert] : chosen) {
        const int32_t slot = pool_of(layer).high.find(layers_[layer].row, expert);
        if (slot != NOWHERE) read(warming_, layer, expert, {HIGH, slot});
    }
}

// It is read like an expert of a warm start: a row that needs the drive goes first.
void Prefetcher::upgrade() {
    for (const Layer &layer : layers_) {
        if (!warming_.empty() || !waiting_.empty()) return;
        Pool &pool = pools_[layer.pool];
        if (layer.row != 0 || pool.high.num_unpinned() <= reserve_) continue;
        const int32_t key = pool.next_upgrade();
        if (key == NOWHERE || pool.high.slot_of(key) != NOWHERE) continue;  // it is coming already
        const int32_t row = key / pool.high.num_experts, expert = key % pool.high.num_experts;
        if (pool.is_above(row, expert)) continue;
        const int32_t number = &layer_at(layers_, layer.pool, row) - layers_.data();
        const int32_t base_slot = low_.has_rest(number, expert) ? pool.low.slot_of(key) : NOWHERE;
        if (base_slot != NOWHERE) pool.low.pin(base_slot);
        const int32_t slot = pool.high.claim(row, {expert})[0];
        read(warming_, number, expert, {HIGH, slot}, base_slot).is_upgrade = true;
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
void Prefetcher::settle_warm(int32_t layer, const std::vector<int32_t> &chosen,
                             const std::vector<int32_t> &levels, Prefetches &coming) {
    if (warming_.size() > WARM_PORTION) cut_warm(WARM_PORTION);
    for (auto next = warming_.begin(); next != warming_.end();) {
        const auto prefetch = next++;
        const bool right = prefetch->layer == layer && serves(*prefetch, chosen, levels);
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
