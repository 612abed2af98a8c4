#include "token_path.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace haversack {

namespace {

constexpr char CHOICE[] = "ffn_moe_topk-";
constexpr int64_t PAGE_BYTES = 4096;

bool is_choice(const Tensor *node) { return std::memcmp(node->name, CHOICE, sizeof CHOICE - 1) == 0; }

constexpr int MOST_STEPS = 8;  // from a choice back to its router's product

// The sum of products; in lanes, so that it can be computed several at a time.
float dot(const float *a, const float *b, int32_t count) {
    constexpr int32_t LANES = 16;
    float sums[LANES] = {};
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int32_t lane = 0; lane < LANES; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++) sums[0] += a[i] * b[i];
    return std::accumulate(sums, sums + LANES, 0.0f);
}

// The experts that `router` would choose, the likeliest first.
std::vector<int32_t> choose_by(const Router &router, const float *inputs) {
    std::vector<std::pair<float, int32_t>> worth(router.num_experts);
    for (int32_t expert = 0; expert < router.num_experts; expert++) {
        float score = dot(router.weight + (int64_t)expert * router.num_inputs, inputs, router.num_inputs);
        worth[expert] = {-score - (router.bias ? router.bias[expert] : 0), expert};
    }
    std::partial_sort(worth.begin(), worth.begin() + router.num_used, worth.end());
    std::vector<int32_t> chosen(router.num_used);
    for (int32_t i = 0; i < router.num_used; i++) chosen[i] = worth[i].second;
    return chosen;
}

// The time since its making, added to `sum`.
class Stopwatch {
  public:
    explicit Stopwatch(double &sum) : sum_(sum), began_s_(now_s()) {}
    ~Stopwatch() { sum_ += now_s() - began_s_; }

  private:
    double &sum_;
    double began_s_;
};

}  // namespace

bool TokenPath::Guess::done() const {
    return std::all_of(reads, reads + num_reads, [](const Read &read) { return read.done(); });
}

bool TokenPath::Guess::came() const {
    return std::all_of(reads, reads + num_reads, [](const Read &read) { return read.came(); });
}

bool TokenPath::Guess::failed() const {
    return std::any_of(reads, reads + num_reads, [](const Read &read) { return read.state == FAILED; });
}

std::vector<Read *> TokenPath::Guess::all() {
    std::vector<Read *> found;
    for (int32_t i = 0; i < num_reads; i++) found.push_back(&reads[i]);
    return found;
}

TokenPath::TokenPath(Ggml ggml, Python python, Odds odds, Readers *readers)
    : ggml_(ggml), python_(python), odds_(odds), readers_(readers) {}

void TokenPath::add_layer(const Layer &layer) {
    layers_.push_back(layer);
    guesses_.emplace_back();
    absent_.emplace_back();
    foreseen_.emplace_back();
    seen_.push_back(false);
    routers_.push_back({});
}

// ------------------------------------------------------------------- callback
// `ask`: whether llama.cpp shall stop after this node. Else it is computed: go on?
bool TokenPath::on_node(Tensor *node, bool ask) {
    bool failed = state.failure != NO_FAILURE;
    if (node->op != ggml_.op_mul_mat_id && node->op != ggml_.op_none) {
        if (failed || !is_choice(node)) return failed && ask;
        return ask || choose(node);
    }
    auto product = products_.find(node->src[0]);
    if (product == products_.end()) return failed && ask;
    if (failed) {
        node->op = ggml_.op_none;  // a graph in several pieces may go on to the next
        return ask;
    }
    if (batch_) return python_.on_node(node, ask);
    auto [layer, index] = product->second;
    return ask ? prepare(node, layer, index) : compute(node, layer, index);
}

bool TokenPath::fail(Failure why, Tensor *node) {
    state.failure = why;
    state.failed_node = node;
    return false;
}

bool TokenPath::fail_read(Read *read) {
    state.failed_read = read;
    state.failed_offset = read->offset;
    state.failed_need = read->need;
    state.failed_got = read->got;
    state.failed_file = read->file;
    state.failed_error = read->error;
    return fail(READ_FAILED);
}

// A router has chosen: remember whom.
bool TokenPath::choose(Tensor *node) {
    if (state.num_seen == 0) state.began_s = now_s();
    state.choice = node;
    bool was_batch = batch_;
    batch_ = node->ne[1] != 1 || state.by_python;
    if (batch_) release();
    if ((batch_ || was_batch || state.watched) && !python_.on_choice(node))
        return fail(PYTHON_FAILED);
    if (batch_) return true;
    if (node->ne[0] > ggml_.max_used) return fail(BOOKS_WRONG, node);
    experts_.resize(node->ne[0]);
    for (size_t i = 0; i < experts_.size(); i++)
        experts_[i] = *(int32_t *)((char *)node->data + i * node->nb[0]);
    return true;
}

// ---------------------------------------------------------------------- lease
// The layer that chose is about to multiply: start to bring its experts.
bool TokenPath::bring(int32_t layer) {
    release();
    if (!lease(layer)) return fail(BOOKS_WRONG);
    Tensor *ids = ggml_.slot_ids;
    int64_t used = experts_.size();
    std::memcpy(ids->data, slots_.data(), used * sizeof(int32_t));
    ids->ne[0] = used;
    for (int axis = 1; axis < 4; axis++) ids->nb[axis] = used * sizeof(int32_t);
    return !late_.empty() || foresee(layer, 1);  // nothing will be waited for: time is dear
}

bool TokenPath::lease(int32_t number) {
    const Layer &layer = layers_[number];
    Table &table = tables_[layer.table];
    leased_ = number;
    int64_t needed = state.needed;
    coming_ = settle_guesses(number);
    slots_.resize(experts_.size());
    std::vector<int32_t> absent, absent_at, held;
    for (size_t i = 0; i < experts_.size(); i++) {
        slots_[i] = table.slot(layer.row, experts_[i]);
        auto is_it = [&](const Guess &guess) { return guess.expert == experts_[i]; };
        auto guess = std::find_if(coming_.begin(), coming_.end(), is_it);
        if (slots_[i] == NOWHERE) {
            absent.push_back(experts_[i]);
            absent_at.push_back(i);
        } else if (guess == coming_.end()) {
            if (table.state[slots_[i]] != SLOT_READY) return false;
            held.push_back(slots_[i]);
        }
        if (slots_[i] == NOWHERE || guess != coming_.end()) {
            Late &late = late_.emplace_back();
            late.position = i;
            for (int32_t m = 0; m < layer.num_matrices; m++)
                late.reads[m] = guess != coming_.end() ? &guess->reads[m] : &late.own[m];
        }
    }
    for (int32_t slot : held) table.pins[slot] += 1;
    table.use(layer.row, experts_.data(), experts_.size());
    state.hits += held.size();
    state.misses += late_.size();
    std::vector<int32_t> claimed(absent.size());
    if (!table.claim(layer.row, absent.data(), absent.size(), claimed.data())) return false;
    state.needed += absent.size();
    odds_.note_token(number, state.needed > needed);
    for (size_t i = 0; i < absent.size(); i++) slots_[absent_at[i]] = claimed[i];
    start_reads(layer);
    return true;
}

// Every missing expert's first matrix before any one's second: products go in order.
void TokenPath::start_reads(const Layer &layer) {
    std::vector<Read *> started;
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        for (Late &late : late_) {
            if (late.reads[m] != &late.own[m]) continue;
            int32_t at = late.position;
            place(late.own[m], layer.matrices[m], experts_[at], slots_[at], false);
            started.push_back(&late.own[m]);
        }
    }
    readers_->submit(started.data(), started.size());
}

// A read of one expert's matrix into its slot: see padded_range in devices/storage.py.
void TokenPath::place(Read &read, const Matrix &matrix, int32_t expert, int32_t slot, bool ahead) {
    int64_t offset = matrix.offset + expert * matrix.num_bytes;
    int64_t residue = offset % PAGE_BYTES;
    read.room = matrix.rooms + slot * matrix.stride;
    read.offset = offset - residue;
    read.need = residue + matrix.num_bytes;
    read.length = (read.need + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    read.from = residue;
    read.to = matrix.rest;
    read.num_bytes = matrix.num_bytes;
    read.file = matrix.file;
    read.ahead = ahead;
    read.state = WAITING;
    read.error = 0;
    read.got = 0;
}

// Unpin the experts: those whose matrices all came stay, the others lose their slot.
void TokenPath::release() {
    if (leased_ < 0) return;
    const Layer &layer = layers_[leased_];
    Table &table = tables_[layer.table];
    for (Late &late : late_) {
        readers_->settle(late.reads, layer.num_matrices);
        bool whole = std::all_of(late.reads, late.reads + layer.num_matrices,
                                 [](Read *read) { return read->came(); });
        int32_t slot = slots_[late.position];
        if (whole) table.state[slot] = SLOT_READY;
        else table.drop(slot);
    }
    for (int32_t slot : slots_) table.pins[slot] -= 1;
    late_.clear();
    coming_.clear();
    leased_ = -1;
}

// ------------------------------------------------------------------ foresight
// Have those experts read that later layers, at most `depth` of them, are likely to choose.
bool TokenPath::foresee(int32_t layer, int32_t depth) {
    if (seen_[layer] && state.foresees == BY_ROUTERS) {
        foresee_by_routers(layer, depth);
    } else if (!seen_[layer] || (state.foresees == BY_PYTHON && any_may_miss(layer))) {
        seen_[layer] = true;
        if (python_.foresee(layers_[layer].number) < 0) return fail(PYTHON_FAILED);
    }
    return true;
}

// Whether what could be foreseen from `layer` is worth it.
bool TokenPath::any_may_miss(int32_t layer) const {
    int32_t end = std::min<int32_t>(layer + 1 + odds_.depth, layers_.size());
    for (int32_t later = layer + 1; later < end; later++)
        if (odds_.may_miss(later)) return true;
    return false;
}

// The next layer's likeliest, or where none of those is worth a read the one's after it.
void TokenPath::foresee_by_routers(int32_t layer, int32_t depth) {
    const Tensor *product = state.choice;
    for (int steps = 0; product && product->op != ggml_.op_mul_mat && steps < MOST_STEPS; steps++)
        product = product->src[0];
    if (!product || product->op != ggml_.op_mul_mat) return;
    const float *inputs = (const float *)product->src[1]->data;
    int32_t end = std::min<int32_t>(layer + 1 + depth, layers_.size());
    for (int32_t later = layer + 1; later < end && routers_[later].weight; later++) {
        if (!odds_.may_miss(later)) continue;
        std::vector<int32_t> likeliest = choose_by(routers_[later], inputs);
        if (read_ahead(later, likeliest.data(), likeliest.size(), later - layer)) return;
    }
}

// -------------------------------------------------------------------- guesses
int32_t TokenPath::read_ahead(int32_t number, const int32_t *experts, int32_t count, int32_t ahead) {
    const Layer &layer = layers_[number];
    Table &table = tables_[layer.table];
    std::vector<int32_t> held, worth;
    absent_[number].resize(table.num_experts);
    for (int32_t expert = 0; expert < table.num_experts; expert++)
        if (table.slot(layer.row, expert) == NOWHERE) absent_[number][expert] = true;
    for (int32_t rank = 0; rank < count; rank++) {
        int32_t slot = table.slot(layer.row, experts[rank]);
        if (slot != NOWHERE) {
            held.push_back(slot);
        } else {
            foreseen_[number].push_back({experts[rank], ahead, rank});
            if (odds_.are_worth(ahead, rank)) worth.push_back(experts[rank]);
        }
    }
    int32_t num_worth = worth.size();
    for (int32_t slot : held) table.pins[slot] += 1;  // what is likely must not go for what is less so
    int32_t room = std::max(0, table.num_unpinned() - ggml_.max_used);
    if (num_worth > room) worth.resize(room);
    std::vector<int32_t> slots(worth.size());
    table.claim(layer.row, worth.data(), worth.size(), slots.data());
    for (int32_t slot : held) table.pins[slot] -= 1;
    start_guesses(number, worth, slots);
    return num_worth;
}

void TokenPath::start_guesses(int32_t number, const std::vector<int32_t> &experts,
                              const std::vector<int32_t> &slots) {
    const Layer &layer = layers_[number];
    std::vector<Read *> started;  // one whole after the other: there may be time for the likeliest
    for (size_t i = 0; i < experts.size(); i++) {
        Guess &guess = guesses_[number].emplace_back();
        guess.expert = experts[i];
        guess.slot = slots[i];
        guess.withdrawn = false;
        guess.num_reads = layer.num_matrices;
        for (int32_t m = 0; m < layer.num_matrices; m++) {
            place(guess.reads[m], layer.matrices[m], guess.expert, guess.slot, true);
            started.push_back(&guess.reads[m]);
        }
    }
    state.guessed += experts.size();
    readers_->submit(started.data(), started.size());
}

// The layer has chosen: of those read ahead, the ones still coming are demanded and returned, the
// others are let go.
std::list<TokenPath::Guess> TokenPath::settle_guesses(int32_t number) {
    std::list<Guess> coming;
    settle_odds(number);
    if (!absent_[number].empty())
        for (int32_t expert : experts_) state.foreseeable += absent_[number][expert];
    absent_[number].clear();
    auto &guesses = guesses_[number];
    for (auto guess = guesses.begin(); guess != guesses.end();) {
        auto here = guess++;
        auto reads = here->all();
        bool right = std::count(experts_.begin(), experts_.end(), here->expert) > 0;
        state.guessed_right += right && !here->withdrawn;
        state.needed += right;
        if (right && (here->withdrawn || here->failed())) {
            readers_->settle(reads.data(), reads.size());
        } else if (right) {
            readers_->demand(reads.data(), reads.size());
        } else if (!here->withdrawn) {
            readers_->cancel(reads.data(), reads.size());
            here->withdrawn = true;
        }
        if (here->done()) {
            let_go(tables_[layers_[number].table], *here);
            guesses.erase(here);
        } else if (right) {
            coming.splice(coming.end(), guesses, here);
        }
    }
    return coming;
}

void TokenPath::settle_odds(int32_t number) {
    for (const Foreseen &one : foreseen_[number])
        odds_.note(one.ahead, one.rank, std::count(experts_.begin(), experts_.end(), one.expert) > 0);
    foreseen_[number].clear();
}

// No read of `guess` is under way: it stays if it came whole.
void TokenPath::let_go(Table &table, Guess &guess) {
    if (guess.came()) table.state[guess.slot] = SLOT_READY;
    else table.drop(guess.slot);
    table.pins[guess.slot] -= 1;
}

void TokenPath::withdraw() {
    for (size_t number = 0; number < guesses_.size(); number++) {
        for (Guess &guess : guesses_[number]) {
            auto reads = guess.all();
            readers_->settle(reads.data(), reads.size());
            let_go(tables_[layers_[number].table], guess);
        }
        guesses_[number].clear();
        absent_[number].clear();
        foreseen_[number].clear();
    }
}

void TokenPath::forget() {
    for (auto &guesses : guesses_) guesses.clear();
    for (auto &absent : absent_) absent.clear();
    for (auto &foreseen : foreseen_) foreseen.clear();
    late_.clear();
    coming_.clear();
    leased_ = -1;
}

// ------------------------------------------------------------------- products
// A product is next: it is llama.cpp's own, over slots, if they are all filled.
bool TokenPath::prepare(Tensor *node, int32_t layer, int32_t index) {
    Stopwatch watch(state.own_s);
    node->op = ggml_.op_none;
    state.num_seen += 1;
    if (node->src[2] != state.choice && node->src[2] != ggml_.slot_ids) return !fail(OTHER_CHOICE, node);
    if (index == 0 && !bring(layer)) return true;
    if (leased_ != layer) return !fail(BOOKS_WRONG, node);
    if (!late_.empty()) return true;
    node->src[2] = ggml_.slot_ids;
    node->op = ggml_.op_mul_mat_id;
    return false;
}

// A product was skipped: do it here, with the experts that are there, then with those that come.
bool TokenPath::compute(Tensor *node, int32_t layer, int32_t index) {
    const Matrix &matrix = layers_[layer].matrices[index];
    std::vector<int32_t> there, waited_for;
    std::vector<Read *> reads;
    for (size_t i = 0; i < experts_.size(); i++) there.push_back(i);
    for (Late &late : late_) {
        Read *read = late.reads[index];
        if (read->came()) continue;
        there.erase(std::find(there.begin(), there.end(), late.position));
        waited_for.push_back(late.position);
        reads.push_back(read);
    }
    if (!multiply(node, matrix, there)) return false;
    if (index == 0) {  // most reads are still to come
        Stopwatch watch(state.own_s);
        if (!foresee(layer, odds_.depth)) return false;
    }
    while (!reads.empty()) {
        if (!readers_->wait(reads.data(), reads.size(), false, python_.should_stop))
            return fail(STOPPED);
        there.clear();
        for (size_t i = 0; i < reads.size();) {
            if (!reads[i]->done()) {
                i++;
                continue;
            }
            if (!reads[i]->came()) return fail_read(reads[i]);
            there.push_back(waited_for[i]);
            reads.erase(reads.begin() + i);
            waited_for.erase(waited_for.begin() + i);
        }
        if (!multiply(node, matrix, there)) return false;
    }
    return true;
}

// Fill the rows of `node` at `positions` with the token's rows times their experts.
bool TokenPath::multiply(Tensor *node, const Matrix &matrix, const std::vector<int32_t> &positions) {
    if (positions.empty()) return true;
    int64_t key = (int64_t)matrix.kind << 32 | positions.size();
    auto found = graphs_.find(key);
    if (found == graphs_.end()) {
        Graph made{nullptr, std::vector<ProductTensors>(positions.size())};
        made.graph = python_.make_graph(matrix.kind, positions.size(), made.tensors.data());
        if (!made.graph) return fail(PYTHON_FAILED);
        found = graphs_.emplace(key, std::move(made)).first;
    }
    const Tensor *rows = node->src[1];
    for (size_t i = 0; i < positions.size(); i++) {
        int64_t at = positions[i];
        const ProductTensors &product = found->second.tensors[i];
        product.weight->data = matrix.rooms + slots_[at] * matrix.stride + matrix.rest;
        product.row->data = (char *)rows->data + at % rows->ne[1] * rows->nb[1];
        product.out->data = (char *)node->data + at * node->nb[1];
    }
    Stopwatch watch(state.product_s);
    int32_t status = ggml_.graph_compute(ggml_.backend, found->second.graph);
    return status == 0 || fail(PRODUCT_FAILED, node);
}

}  // namespace haversack
