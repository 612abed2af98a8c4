// What offload/_native.py calls.
#include "device.hpp"
#include "engine.hpp"
#include "pool.hpp"
#include "simulated.hpp"
#include "weight_memory.hpp"

#include <algorithm>

using namespace haversack;

#define API extern "C" __attribute__((visibility("default")))

API const char *haversack_device_register(const Build *build) { return register_device(*build); }

// ---------------------------------------------------------------- expert buffer
API ExpertBuffer *haversack_expert_buffer_new() { return new ExpertBuffer; }
API BufferType *haversack_expert_buffer_type(ExpertBuffer *buffer) { return buffer->type(); }
API void haversack_expert_buffer_finish_loading(ExpertBuffer *buffer) { buffer->loading = false; }
API bool haversack_expert_buffer_failed(ExpertBuffer *buffer) { return buffer->failed; }
API size_t haversack_expert_buffer_weights(ExpertBuffer *buffer, Tensor **found, size_t room) {
    std::copy_n(buffer->weights.begin(), std::min(room, buffer->weights.size()), found);
    return buffer->weights.size();
}
API void haversack_expert_buffer_delete(ExpertBuffer *buffer) { delete buffer; }

API BufferType *haversack_weight_memory() { return weight_memory(); }

// ------------------------------------------------------------ device of a context
API ContextDevice *haversack_device_new(Engine *engine, int num_threads) {
    return new ContextDevice(engine, num_threads);
}
API void haversack_device_add_weight(ContextDevice *device, const Tensor *weight, int layer, int index,
                                     bool is_last) {
    device->add_weight(weight, layer, index, is_last);
}
API bool haversack_device_can_lean(ContextDevice *device) { return device->can_lean(); }
API void haversack_device_delete(ContextDevice *device) { delete device; }

// ----------------------------------------------------------------------- engine
API Engine *haversack_engine_new(const Caller *caller, Readers *readers, int32_t num_used,
                                 int64_t most_rows) {
    return new Engine(*caller, readers, num_used, most_rows);
}
API void haversack_engine_add_pool(Engine *engine, int32_t num_rows, int32_t num_experts,
                                   int32_t num_slots, int32_t num_spare) {
    engine->add_pool(Pool(num_rows, num_experts, num_slots, num_spare));
}
API void haversack_engine_add_pool_of_two(Engine *engine, int32_t num_rows, int32_t num_experts,
                                          const PoolBytes *bytes, int32_t num_spare) {
    engine->add_pool(Pool(num_rows, num_experts, *bytes, num_spare));
}
API void haversack_engine_set_leaning(Engine *engine, float bias, int32_t num_kept) {
    engine->set_leaning({bias, num_kept});
}
API void haversack_engine_set_precision(Engine *engine, const Precision *precision) {
    engine->set_precision(*precision);
}
// Returns how many records of low copies were found damaged since it was asked last; the first `room`
// are written: a slice, a layer's place and an expert of each.
API size_t haversack_engine_damaged(Engine *engine, Record *records, size_t room) {
    auto &damaged = engine->low_copies().damaged;
    const size_t count = damaged.size();
    std::copy_n(damaged.begin(), std::min(room, count), records);
    if (room >= count) damaged.clear();
    return count;
}
// From now on keep a sample of the routers' weights, at least `size` of them.
API void haversack_engine_sample_weights(Engine *engine, size_t size) {
    engine->low_copies().sample_size = size;
}
// Returns how many weights the sample has, 0 while it is not full. They are written if there is room;
// the sample is gone then.
API size_t haversack_engine_sampled_weights(Engine *engine, float *weights, size_t room) {
    LowCopies &low = engine->low_copies();
    const size_t count = low.sampled.size() < low.sample_size ? 0 : low.sampled.size();
    if (count == 0 || room < count) return count;
    std::copy(low.sampled.begin(), low.sampled.end(), weights);
    low.sampled = {}, low.sample_size = 0;
    return count;
}
// With both at 1 everything is exact from now on, batches too.
API void haversack_engine_set_thresholds(Engine *engine, float low, float skip) {
    engine->low_copies().thresholds = {low, skip};
    if (low == 1 && skip == 1) engine->low_copies().batch_low_share = 0;
}
API bool haversack_engine_balance(Engine *engine) { return engine->balance(); }
API int32_t haversack_engine_num_slots(Engine *engine, int32_t pool, int32_t level) {
    return engine->pool(pool).level(level).num_slots();
}
API void haversack_engine_add_layer(Engine *engine, const Layer *layer) { engine->add_layer(*layer); }
// Returns false if the device has not the memory.
API bool haversack_engine_add_tier(Engine *engine, const TierPlan *plan) {
    return engine->add_tier(*plan);
}
API int32_t haversack_engine_fill_tiers(Engine *engine) { return engine->fill_tiers(); }
API const TierState *haversack_engine_tier_state(Engine *engine, int32_t tier) {
    return &engine->tier(tier).state;
}
// Null if the tier has no slots for the pool.
API Slots *haversack_engine_tier_slots(Engine *engine, int32_t tier, int32_t pool) {
    return engine->tier(tier).slots(pool);
}
API const char *haversack_engine_tiers_fault(Engine *engine) { return engine->tiers_fault(); }
API void haversack_engine_finish(Engine *engine) { engine->finish(); }
API EngineState *haversack_engine_state(Engine *engine) { return &engine->state; }
API void haversack_engine_counts(Engine *engine, PrefetchCounts *counts) {
    *counts = engine->prefetcher().counts;
}
API int32_t haversack_engine_end_pass(Engine *engine, bool computed) {
    return engine->end_pass(computed);
}
API bool haversack_engine_is_prefetching(Engine *engine) { return engine->is_prefetching(); }
API void haversack_engine_withdraw(Engine *engine) { engine->withdraw(); }
API void haversack_engine_resize_pool(Engine *engine, int32_t pool, int32_t num_slots) {
    engine->resize_pool(pool, num_slots);
}
API Slots *haversack_engine_slots(Engine *engine, int32_t pool, int32_t level) {
    return &engine->pool(pool).level(level);
}
// Pairs of a layer's place and an expert.
API void haversack_engine_start_warm(Engine *engine, const int32_t (*experts)[2], size_t count) {
    std::deque<std::pair<int32_t, int32_t>> wanted;
    for (size_t i = 0; i < count; i++) wanted.emplace_back(experts[i][0], experts[i][1]);
    engine->prefetcher().start_warm(std::move(wanted));
}
API size_t haversack_engine_not_warm(Engine *engine, int32_t (*experts)[2], size_t room) {
    const auto waiting = engine->prefetcher().not_warm();
    for (size_t i = 0; i < std::min(room, waiting.size()); i++)
        experts[i][0] = waiting[i].first, experts[i][1] = waiting[i].second;
    return waiting.size();
}
API void haversack_engine_delete(Engine *engine) { delete engine; }

// ------------------------------------------------------------------------ slots
API int32_t haversack_slots_state(Slots *slots, int32_t row, int32_t expert) {
    return slots->state_of(row, expert);
}
API void haversack_slots_resize(Slots *slots, int32_t num_slots) { slots->resize(num_slots); }
API size_t haversack_slots_residents(Slots *slots, int32_t *keys, size_t room) {
    const auto found = slots->residents();
    std::copy_n(found.begin(), std::min(room, found.size()), keys);
    return found.size();
}
// `counts`: uses, last passes and last uses of all keys; `clock`: passes, row, layers.
API void haversack_slots_uses(Slots *slots, double *counts, double *clock) {
    const Uses &uses = slots->uses();
    for (const auto *each : {&uses.uses, &uses.last_pass, &uses.last_use})
        counts = std::copy(each->begin(), each->end(), counts);
    clock[0] = uses.passes, clock[1] = uses.row, clock[2] = uses.layers;
}
API void haversack_slots_remember(Slots *slots, const double *counts, const double *clock) {
    const size_t num_keys = slots->uses().uses.size();
    Uses uses;
    for (auto *each : {&uses.uses, &uses.last_pass, &uses.last_use}) {
        each->assign(counts, counts + num_keys);
        counts += num_keys;
    }
    uses.passes = clock[0], uses.row = clock[1], uses.layers = clock[2];
    slots->remember(uses);
}
API const char *haversack_slots_fault(Slots *slots) { return slots->fault(); }

// ---------------------------------------------------------------------- routers
// How the router chooses whose choice `ids` is; null where that is not known.
API Router *haversack_router_learn(const Tensor *ids) {
    const Router router = learn_router(ids);
    return router.is_known() ? new Router(router) : nullptr;
}
API const Tensor *haversack_router_input(const Tensor *ids) { return router_input(ids); }
API const Tensor *haversack_router_probabilities(const Tensor *ids) { return router_probabilities(ids); }
// Returns how many experts were written: those that it chooses and the `extra` next ones.
API int32_t haversack_router_choose(Router *router, const float *input, int32_t extra,
                                    int32_t *experts) {
    const auto chosen = router->choose(input, extra);
    std::copy(chosen.begin(), chosen.end(), experts);
    return chosen.size();
}
API int32_t haversack_router_num_experts(Router *router) { return router->num_experts; }
API void haversack_router_delete(Router *router) { delete router; }

// ------------------------------------------------------------- simulated device
API SimulatedDevice *haversack_simulated_new(const SimulatedShape *shape, const char *name,
                                             const char *description) {
    return new SimulatedDevice(*shape, name, description);
}
API Device *haversack_simulated_device(SimulatedDevice *simulated) { return simulated->device(); }
API void haversack_simulated_counts(SimulatedDevice *simulated, SimulatedCounts *counts) {
    *counts = simulated->counts();
}
API void haversack_simulated_fail(SimulatedDevice *simulated, int32_t what, int64_t nth) {
    simulated->fail((SimulatedFault)what, nth);
}
API void haversack_simulated_delete(SimulatedDevice *simulated) { delete simulated; }

// -------------------------------------------------------------------- for tests
// Books, rules and products without an engine: tests hold them against the same in Python.
API Slots *haversack_slots_new(int32_t num_rows, int32_t num_experts, int32_t num_slots,
                               int32_t num_spare) {
    return new Slots(num_rows, num_experts, num_slots, num_spare);
}
API int32_t haversack_slots_find(Slots *slots, int32_t row, int32_t expert) {
    return slots->find(row, expert);
}
API int32_t haversack_slots_num_unpinned(Slots *slots) { return slots->num_unpinned(); }
API void haversack_slots_use(Slots *slots, int32_t row, const int32_t *experts, size_t count) {
    slots->use(row, {experts, experts + count});
}
API void haversack_slots_claim(Slots *slots, int32_t row, const int32_t *experts, size_t count,
                               int32_t *claimed) {
    const auto found = slots->claim(row, {experts, experts + count});
    std::copy(found.begin(), found.end(), claimed);
}
API void haversack_slots_borrow(Slots *slots, int32_t count, int32_t *borrowed) {
    const auto found = slots->borrow(count);
    std::copy(found.begin(), found.end(), borrowed);
}
API void haversack_slots_fill(Slots *slots, int32_t slot) { slots->fill(slot); }
API void haversack_slots_drop(Slots *slots, int32_t slot) { slots->drop(slot); }
API void haversack_slots_pin(Slots *slots, int32_t slot) { slots->pin(slot); }
API void haversack_slots_unpin(Slots *slots, int32_t slot) { slots->unpin(slot); }
API void haversack_slots_recover(Slots *slots) { slots->recover(); }
// Returns how many of `experts` are worth a slot; those are written to `staying`.
API size_t haversack_slots_outlasting(Slots *slots, int32_t row, const int32_t *experts, size_t count,
                                      int32_t *staying) {
    const auto found = slots->outlasting(row, {experts, experts + count});
    std::copy(found.begin(), found.end(), staying);
    return found.size();
}
API Pool *haversack_pool_new(int32_t num_rows, int32_t num_experts, const PoolBytes *bytes,
                             int32_t num_spare) {
    return new Pool(num_rows, num_experts, *bytes, num_spare);
}
API Slots *haversack_pool_level(Pool *pool, int32_t level) { return &pool->level(level); }
API void haversack_pool_use(Pool *pool, int32_t row, const int32_t *experts, const int32_t *levels,
                            size_t count) {
    pool->high.use(row, {experts, experts + count}, {levels, levels + count});
}
API int32_t haversack_pool_find(Pool *pool, int32_t row, int32_t expert, int32_t wanted,
                                int32_t *slot) {
    const Copy copy = pool->find(row, expert, wanted);
    *slot = copy.slot;
    return copy.level;
}
API void haversack_pool_read_levels(Pool *pool, int32_t *levels, size_t count) {
    const auto found = pool->read_levels({levels, levels + count});
    std::copy(found.begin(), found.end(), levels);
}
API void haversack_pool_fill(Pool *pool, int32_t level, int32_t slot) { pool->fill(level, slot); }
// Returns how many moves were written: level, source and target of each.
API size_t haversack_pool_balance(Pool *pool, Move *moves) {
    const auto found = pool->balance();
    std::copy(found.begin(), found.end(), moves);
    return found.size();
}
API int32_t haversack_pool_next_upgrade(Pool *pool) { return pool->next_upgrade(); }
API void haversack_pool_delete(Pool *pool) { delete pool; }
API Promotions *haversack_promotions_new(Pool *pool, Slots *device, bool is_exclusive) {
    pool->above.push_back(device);
    return new Promotions(*pool, *device, is_exclusive);
}
// Returns false if no expert is worth moving.
API bool haversack_promotions_next(Promotions *promotions, Promotion *found) {
    const auto next = promotions->next();
    if (next) *found = *next;
    return next.has_value();
}
API void haversack_promotions_take_down(Promotions *promotions, Promotion *promotion) {
    promotions->take_down(*promotion);
}
API void haversack_promotions_finish(Promotions *promotions, const Promotion *promotion, bool came) {
    promotions->finish(*promotion, came);
}
API void haversack_promotions_delete(Promotions *promotions) { delete promotions; }
API Slots *haversack_slots_on_device(Slots *host, int32_t num_slots) {
    return new Slots(host->rule(), HIGH, num_slots, 0);
}
API void haversack_precision_row_levels(const float *weights, size_t count, float low, float skip,
                                        int32_t *levels) {
    const auto found = row_levels({weights, weights + count}, {low, skip});
    std::copy(found.begin(), found.end(), levels);
}
API void haversack_precision_batch_levels(const int32_t *votes, size_t count, double low_share,
                                          int32_t *levels) {
    const auto found = batch_levels({votes, votes + count}, low_share);
    std::copy(found.begin(), found.end(), levels);
}
API int32_t haversack_lean(int32_t *ranked, const float *scores, const bool *resident,
                           int32_t num_experts, int32_t num_used, float bias, int32_t num_kept) {
    const std::vector<bool> of_experts(resident, resident + num_experts);
    return lean(ranked, scores, of_experts, num_used, {bias, num_kept});
}
API void haversack_slots_delete(Slots *slots) { delete slots; }
// Compute `node`, a MUL_MAT_ID of llama.cpp's form, with experts that lie in slots of their own numbers,
// `portion` of them at a time.
API int32_t haversack_products_compute(const Tensor *node, const Matrix *matrix, int32_t num_experts,
                                       int32_t portion, int64_t most_rows, int num_threads) {
    Cpu cpu(num_threads);
    Choice choice;
    choice.read(node->src[2], num_experts);
    ExpertProducts products(most_rows);
    products.begin(node, *matrix, choice);
    for (int32_t first = 0; first < (int32_t)choice.experts.size(); first += portion) {
        std::vector<int32_t> positions, slots;
        for (int32_t i = first; i < std::min<int32_t>(first + portion, choice.experts.size()); i++) {
            positions.push_back(i);
            slots.push_back(choice.experts[i]);
        }
        if (Status status = products.run(positions, slots, cpu)) return status;
    }
    return SUCCESS;
}
