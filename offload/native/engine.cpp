#include "engine.hpp"

#include <algorithm>
#include <cstring>

#include "clock.hpp"
#include "guard.hpp"

namespace haversack {

namespace {

constexpr int64_t MOST_TABLE_BYTES = 8 * 1024 * 1024;  // of llama.cpp's table of matrices and rows
constexpr int LEARN_ATTEMPTS = 4;

// Unless it is dismissed, waits at the end of its life until no read is under way. It stands after the
// reads that its block keeps, which must not go before: also not where llama.cpp gives up.
class Drain {
  public:
    explicit Drain(Readers &readers) : readers_(&readers) {}
    ~Drain() {
        if (readers_) readers_->drain();
    }
    void dismiss() { readers_ = nullptr; }

  private:
    Readers *readers_;
};

// At the end of its life no device is fed any more: llama.cpp goes on, whose calls may use the same link.
class End {
  public:
    explicit End(const std::vector<std::unique_ptr<Streamer>> &streamers) : streamers_(streamers) {}
    ~End() {
        for (auto &streamer : streamers_) streamer->give_up();
    }

  private:
    const std::vector<std::unique_ptr<Streamer>> &streamers_;
};

}  // namespace

Engine::Engine(Caller caller, Readers *readers, int32_t num_used, int64_t most_rows)
    : caller_(caller), readers_(*readers), num_used_(num_used), products_(most_rows) {}

void Engine::finish() {
    int32_t num_ranks = 0;
    for (const Layer &layer : layers_) {
        num_ranks = std::max(num_ranks, pools_[layer.pool].high.num_experts);
        num_products_ += layer.num_matrices;
    }
    routers_.resize(layers_.size());
    attempts_left_.assign(layers_.size(), LEARN_ATTEMPTS);
    prefetcher_ =
        std::make_unique<Prefetcher>(layers_, pools_, low_, readers_, num_used_, num_ranks);
}

Status Engine::fail(Failure why, const Tensor *node) {
    state.failure = why;
    state.failed_node = node;
    return COMPUTE_FAILED;
}

Status Engine::fail_read(Read *read) {
    state.failed_read = read;
    state.failed_offset = read->offset;
    state.failed_need = read->need;
    state.failed_got = read->got;
    state.failed_file = read->file;
    state.failed_error = read->error;
    return fail(READ_FAILED);
}

bool Engine::wait_for_any(const std::vector<int32_t> &positions, const std::vector<Read *> &reads) {
    std::vector<Read *> wanted;
    for (int32_t position : positions) wanted.push_back(reads[position]);
    return wait(wanted, false);
}

// Return when all or any of `reads` are done; false if the caller wants to stop before.
bool Engine::wait(const std::vector<Read *> &reads, bool for_all) {
    Stopwatch watch(owner_waited_s);
    return readers_.wait(reads.data(), reads.size(), for_all, caller_.should_stop);
}

// --------------------------------------------------------------------- a layer
Status Engine::compute(int32_t number, const std::vector<Tensor *> &nodes,
                       const std::vector<Product> &products, Cpu &cpu, const Tensor *weights) {
    if (state.failure) return COMPUTE_FAILED;
    const double began_s = now_s(), elsewhere_s = cpu.computed_s + owner_waited_s;
    const Tensor *ids = nodes[products[0].at]->src[2];
    for (const Product &product : products)
        if (nodes[product.at]->src[2] != ids) return fail(OTHER_CHOICE, nodes[product.at]);
    if (products_seen_ == 0) {
        if (!all_tiers_work()) return COMPUTE_FAILED;
        began_s_ = began_s;
        hits_at_start_ = state.hits, misses_at_start_ = state.misses;
        rows_ = ids->ne[1];
        needed_before_ = prefetcher_->counts.needed;
        waited_before_s_ = owner_waited_s;
        predicting_s_ = 0;
    }
    products_seen_ += products.size();
    state.num_calls++;
    if (ids->ne[1] == 0) return SUCCESS;
    const Layer &layer = layers_[number];
    choice_.read(ids, pools_[layer.pool].high.num_experts);
    Status status = SUCCESS;
    const End end(streamers_);
    if (tiers_.empty() || products[0].at == 0) {
        status = compute_layer({number, layer, ids, choice_, cpu, nodes, products, weights});
    } else {  // devices begin with the first product, which may need what stands before it
        status = compute_nodes(nodes.data(), products[0].at, cpu);
        nodes_.assign(nodes.begin() + products[0].at, nodes.end());
        products_of_ = products;
        for (Product &product : products_of_) product.at -= products[0].at;
        if (status == SUCCESS)
            status = compute_layer({number, layer, ids, choice_, cpu, nodes_, products_of_, weights});
    }
    state.own_s += now_s() - began_s - (cpu.computed_s + owner_waited_s - elsewhere_s);
    return status;
}

Status Engine::compute_layer(const Call &call) {
    if (call.is_batch()) {
        if (caller_.should_stop()) return fail(STOPPED);
        if (products_seen_ == (int64_t)call.products.size()) {
            prefetcher_->withdraw();
            use_all_slots();
        }
    }
    learn(call);
    products_.begin_layer();
    wish(call);
    find_elsewhere(call);
    if (!fits(call)) return compute_in_waves(call);
    Drain drain(readers_);
    if (!take_lease(call, lease_)) return COMPUTE_FAILED;
    choose_streamed(call, lease_);
    if (!start_tiers(call)) return COMPUTE_FAILED;
    const double computed_before_s = call.cpu.computed_s, began_s = now_s() - owner_waited_s;
    Status status = compute_leased(call, lease_);
    note_host_s(call, lease_, call.cpu.computed_s - computed_before_s);
    if (status == SUCCESS) note_batch_s(call, lease_, now_s() - owner_waited_s - began_s);
    if (status == SUCCESS) status = finish_tiers(call);
    const bool lacks_slot = state.failure == NO_SLOT;
    if (status != SUCCESS && !lacks_slot) return status;
    if (lacks_slot && !take_back_streamed()) return COMPUTE_FAILED;
    release(call, lease_);
    drain.dismiss();
    if (!lacks_slot) return SUCCESS;
    state.failure = NO_FAILURE;  // only the first product was begun, so all of it can be done again
    return compute_in_waves(call);
}

// Compute the call's nodes in order, the products by `multiply`.
Status Engine::compute_nodes_between(const Call &call, const Multiply &multiply) {
    size_t next = 0;
    for (const Product &product : call.products) {
        Status status = compute_nodes(&call.nodes[next], product.at - next, call.cpu);
        if (status == SUCCESS) status = multiply(product);
        if (status != SUCCESS)
            return state.failure ? COMPUTE_FAILED : fail(PRODUCT_FAILED, call.nodes[product.at]);
        next = product.at + 1;
    }
    return compute_nodes(call.nodes.data() + next, call.nodes.size() - next, call.cpu);
}

// -------------------------------------------------------------------- products
Status Engine::compute_leased(const Call &call, Lease &lease) {
    if (lease.late.empty()) {
        if (Status status = predict(call, 1)) return status;  // no wait hides its time
        const auto [low, high] = std::minmax_element(lease.slots.begin(), lease.slots.end());
        const int32_t num_slots = *high - *low + 1;
        const int64_t table_bytes = 8 * num_slots * (int64_t)call.choice.of_pairs.size();
        if (!lease.has_gaps() && table_bytes <= MOST_TABLE_BYTES)
            return compute_over_slots(call, lease, *low, num_slots);
        if (lease.num_elsewhere > 0 && call.choice.num_rows == 1 && lease.num_low() == 0)
            return compute_those_here(call, lease);
    }
    auto multiply = [&](const Product &product) {
        if (lease.has_gaps()) skip(call, lease, call.nodes[product.at]);
        return multiply_as_they_come(call, lease, product);
    };
    const Status status = compute_nodes_between(call, std::ref(multiply));
    const size_t last = call.products.back().at;
    for (size_t at = last + 1; lease.has_gaps() && at < call.nodes.size(); at++)
        if (call.nodes[at]->op == ggml().op_add_id && call.nodes[at]->src[0] == call.nodes[last])
            skip(call, lease, call.nodes[at]);  // a bias is part of the expert
    return status;
}

// The part in `node` of experts that are not computed here is zero: of a skipped one, whatever its
// weight, and until its device is done.
void Engine::skip(const Call &call, const Lease &lease, const Tensor *node) {
    const Choice &choice = call.choice;
    for (size_t i = 0; i < lease.levels.size(); i++)
        for (int32_t at = choice.starts[i]; lease.levels[i] >= SKIP && at < choice.starts[i + 1]; at++) {
            const int32_t pair = choice.pairs[at];
            std::memset(node->row(pair % choice.num_used, pair / choice.num_used), 0,
                        node->ne[0] * sizeof(float));
        }
}

// All experts are there: each product is one operation over the `num_slots` slots from `first` in
// place of experts.
Status Engine::compute_over_slots(const Call &call, const Lease &lease, int32_t first, int32_t num_slots) {
    const Choice &choice = call.choice;
    slot_of_.resize(pools_[call.layer.pool].high.num_experts);
    slot_ids_.resize(choice.of_pairs.size());
    for (size_t i = 0; i < choice.experts.size(); i++) slot_of_[choice.experts[i]] = lease.slots[i] - first;
    for (size_t i = 0; i < slot_ids_.size(); i++) slot_ids_[i] = slot_of_[choice.of_pairs[i]];
    Tensor slot_ids = make_tensor(TYPE_I32, choice.num_used, choice.num_rows, 1, slot_ids_.data());
    Tensor weights[MAX_MATRICES], products[MAX_MATRICES];
    graph_ = call.nodes;
    for (size_t i = 0; i < call.products.size(); i++) {
        const Product &product = call.products[i];
        const Matrix &matrix = call.layer.matrices[HIGH][product.index];
        weights[i] = make_tensor(matrix.type, matrix.num_inputs, matrix.num_rows, num_slots,
                                 matrix.in_slot(first), matrix.stride);
        products[i] = *call.nodes[product.at];
        products[i].src[0] = &weights[i];
        products[i].src[2] = &slot_ids;
        graph_[product.at] = &products[i];
    }
    return compute_nodes(graph_.data(), graph_.size(), call.cpu);
}

// Multiply with the experts that are there, then with those that come.
Status Engine::multiply_as_they_come(const Call &call, Lease &lease, const Product &product) {
    products_.begin(call.nodes[product.at], call.layer.matrices[HIGH][product.index], call.choice);
    std::vector<Late *> late(lease.slots.size());  // by position; null: it was there
    std::vector<Read *> reads(lease.slots.size());
    for (Late &one : lease.late) late[one.position] = &one;
    const auto is_ready = [&](int32_t position) {
        if (!late[position]) return true;
        const auto lacking = [&] {
            return late[position]->read_before(product.index, call.layer.num_matrices);
        };
        Read *read = reads[position] = lacking();
        return read->done() && lacking() == read;  // others may be lacking, if it came just now
    };
    std::vector<int32_t> left, ready;
    for (size_t i = 0; i < lease.slots.size(); i++)
        if (lease.levels[i] < SKIP) left.push_back(i);
    for (bool is_first = true; !left.empty(); is_first = false) {
        if (!is_first && !wait_for_any(left, reads)) return fail(STOPPED);
        const auto others = std::stable_partition(left.begin(), left.end(), is_ready);
        std::vector<int32_t> done(left.begin(), others);
        left.erase(left.begin(), others);
        ready.clear();
        for (int32_t position : done) {
            if (reads[position] && !reads[position]->came()) return fail_read(reads[position]);
            if (!late[position] || is_whole(call, lease, *late[position])) {
                ready.push_back(position);
                continue;
            }
            if (!read_high_instead(call, lease, *late[position])) return COMPUTE_FAILED;
            left.push_back(position);
        }
        if (Status status = multiply(call, lease, product, ready)) return status;
        if (is_first && product.index == 0 && !lease.late.empty())  // most reads are still to come
            if (Status status = predict(call, PREFETCH_DEPTH)) return status;
    }
    return SUCCESS;
}

// Multiply with the experts at these positions of the choice, those of one level after the other.
Status Engine::multiply(const Call &call, const Lease &lease, const Product &product,
                        const std::vector<int32_t> &positions) {
    std::vector<int32_t> some, slots;
    for (int32_t level : {HIGH, LOW}) {
        some.clear();
        slots.clear();
        for (int32_t position : positions)
            if (lease.levels[position] == level) {
                some.push_back(position);
                slots.push_back(lease.slots[position]);
            }
        if (some.empty()) continue;
        products_.begin(call.nodes[product.at], call.layer.matrices[level][product.index], call.choice);
        if (Status status = products_.run(some, slots, call.cpu)) return status;
    }
    return SUCCESS;
}

// ----------------------------------------------------------------- predictions
void Engine::learn(const Call &call) {
    if (state.predictions != BY_ROUTERS || attempts_left_[call.number] == 0) return;
    routers_[call.number] = learn_router(call.ids);
    attempts_left_[call.number] = routers_[call.number].is_known() ? 0 : attempts_left_[call.number] - 1;
}

// Have those experts read that later layers, at most `depth` of them, are likely to choose.
Status Engine::predict(const Call &call, int depth) {
    if (!is_prefetching()) return SUCCESS;
    Stopwatch watch(predicting_s_);
    if (call.is_batch()) {
        if (state.predictions == BY_ROUTERS) predict_for_batch(call);
        return SUCCESS;
    }
    if (state.predictions == BY_CALLER) return predict_by_caller(call, depth);
    predict_by_routers(call, depth);
    return SUCCESS;
}

// The next layer is predicted, or where none of its experts is worth a read the one after it.
Status Engine::predict_by_caller(const Call &call, int depth) {
    const int32_t end = std::min<int32_t>(call.number + 1 + depth, layers_.size());
    for (int32_t later = call.number + 1; later < end; later++) {
        if (!prefetcher_->may_miss(later)) continue;
        std::vector<int32_t> experts(pools_[layers_[later].pool].high.num_experts);
        const int32_t count = caller_.predict(layers_[later].number, experts.data());
        if (count < 0) return fail(CALLER_FAILED);
        experts.resize(count);
        if (count == 0 || prefetcher_->predicted(later, experts, later - call.number)) break;
    }
    return SUCCESS;
}

void Engine::predict_by_routers(const Call &call, int depth) {
    if (!routers_[call.number].is_known()) return;
    const int32_t end = std::min<int32_t>(call.number + 1 + depth, layers_.size());
    for (int32_t later = call.number + 1; later < end && routers_[later].is_known(); later++) {
        if (!prefetcher_->may_miss(later)) continue;
        const Tensor *input = router_input(call.ids);
        int32_t num_worth = 0;
        for (int64_t row = 0; row < input->ne[1]; row++) {
            const auto *inputs = (const float *)input->row(row);
            const auto likely = likely_choice(later, inputs);
            const auto levels = predicted_levels(later, inputs, likely);
            num_worth += prefetcher_->predicted(later, likely, later - call.number, levels);
        }
        if (num_worth) return;
    }
}

std::vector<int32_t> Engine::likely_choice(int32_t layer, const float *inputs) const {
    if (!leans()) return routers_[layer].choose(inputs);
    return routers_[layer].choose(inputs, residents_of(layers_[layer]), leaning_);
}

// The levels at which `experts` will be wanted, by the weights that the router predicts; none if all are
// exact.
std::vector<int32_t> Engine::predicted_levels(int32_t layer, const float *inputs,
                                              const std::vector<int32_t> &experts) const {
    if (!low_.exist()) return {};
    auto levels = row_levels(routers_[layer].weights(inputs, experts), low_.thresholds);
    for (size_t i = 0; i < levels.size(); i++)
        if (levels[i] == LOW && !low_.has(layer, experts[i])) levels[i] = HIGH;
    return levels;
}

// A batch uses most experts anyway, and the drive would rest while the next layer's attention is
// computed. The last layer may choose for one row alone.
void Engine::predict_for_batch(const Call &call) {
    const int32_t later = call.number + 1;
    if (later + 1 >= (int32_t)layers_.size() || !prefetcher_->may_miss(later)) return;
    if (!routers_[call.number].is_known() || !routers_[later].is_known()) return;
    const auto popular = routers_[later].popular(router_input(call.ids), call.cpu);
    prefetcher_->predicted_for_batch(later, popular);
}

// ---------------------------------------------------------------------- passes
Failure Engine::end_pass(bool computed) {
    const int64_t seen = products_seen_;
    products_seen_ = 0;
    Failure failure = (Failure)state.failure;
    if (failure == NO_FAILURE && computed && (seen == 0 || seen % num_products_ != 0))
        failure = PRODUCTS_MISSING;
    if (failure != NO_FAILURE || !computed) {
        readers_.drain();
        abandon_tiers();
        prefetcher_->forget();
        for (Pool &pool : pools_) pool.recover();
    } else if (rows_ > MOST_EXACT_ROWS) {
        prefetcher_->drop_predictions();
    } else if (rows_ == 1 && state.predictions != NO_PREDICTIONS) {
        trial_.note_pass({now_s() - began_s_, prefetcher_->counts.needed - needed_before_,
                          owner_waited_s - waited_before_s_, predicting_s_});
    }
    if (failure == NO_FAILURE && computed && rows_ <= MOST_EXACT_ROWS) {
        grow_pools();
        const bool is_idle = calls_since_read_ > (int64_t)layers_.size();
        if (low_.exist() && is_idle) prefetcher_->upgrade();
    }
    for (Pool &pool : pools_)
        for (int32_t slot : pool.doubles()) pool.high.drop(slot);
    if (failure == NO_FAILURE && computed) promote();
    return failure;
}

}  // namespace haversack
