// Layers computed by the engine and a device, while experts move up to it, pools change and reads fail:
// the numbers are those of the file's experts.
#include "engine_model.hpp"

#include <cerrno>
#include <string>

using namespace haversack;

namespace {

constexpr int64_t WORKSPACE_BYTES = 1 << 20;

struct OnDevice {
    explicit OnDevice(int32_t num_slots, bool is_exclusive = false, bool is_fixed = false,
                      int32_t num_staging = 0)
        : num_slots(num_slots),
          plan{nullptr,     &this->num_slots, WORKSPACE_BYTES, num_staging,
               is_exclusive, is_fixed} {}
    const int32_t num_slots;
    const TierPlan plan;
};

const TierState &tier_state(const Model &model) { return model.engine->tier(0).state; }

void run_until_promoted(Model &model, std::minstd_rand &random, int64_t num_experts) {
    while (tier_state(model).promoted < num_experts) run_whole_pass(model, random, 1);
}

// Whether the numbers of a pair are those of its expert's HIGH copy.
bool is_high(const Model &model, const LayerCall &call, size_t pair) {
    const float *row = &call.rows[pair / call.num_used * NUM_INPUTS];
    const auto numbers = model.result(call.layer, call.chosen[pair], row);
    return std::equal(numbers.begin(), numbers.end(), &call.out[pair * NUM_INPUTS]);
}

}  // namespace

TEST(experts_on_a_device_give_the_same_numbers) {
    for (int32_t there : {1, NUM_EXPERTS, NUM_LAYERS * NUM_EXPERTS}) {
        const OnDevice device(there, false, true);
        Model model(THREADS, 2 * NUM_USED, TYPE_F32, 4, false, &device.plan);
        CHECK(model.engine->fill_tiers() == NO_FAILURE);
        std::minstd_rand random(there);
        for (int64_t num_rows : {1, 1, 2, 7, 30, 1}) run_whole_pass(model, random, num_rows);
        CHECK(tier_state(model).hits > 0);
        CHECK(there < NUM_LAYERS * NUM_EXPERTS || model.engine->state.misses == 0);
    }
}

TEST(a_batch_goes_to_the_device_in_portions) {
    OnDevice device(NUM_LAYERS * NUM_EXPERTS, false, true);
    TierPlan small = device.plan;
    small.workspace_bytes = 16 * 1024;
    Model model(THREADS, 2 * NUM_USED, TYPE_F32, 4, false, &small);
    CHECK(model.engine->fill_tiers() == NO_FAILURE);
    std::minstd_rand random(17);
    for (int64_t num_rows : {200, 1, 200}) run_whole_pass(model, random, num_rows);
}

TEST(a_device_that_has_not_the_memory_leaves_nothing_behind) {
    constexpr int64_t WIDTH = 1024, NUM_BYTES = WIDTH * WIDTH * 4;
    const int32_t num_slots[] = {4, 1 << 30};  // the second pool's are too many
    Model model(THREADS, 2 * NUM_USED);
    Layer layer{NUM_LAYERS, 0, 1, 1, {}};
    layer.matrices[HIGH][0] = {nullptr, NUM_BYTES, 0, 0, NUM_BYTES, WIDTH, WIDTH, 0, TYPE_F32, NUM_BYTES};
    model.engine->add_pool(Pool(1, NUM_EXPERTS, NUM_USED, 0));
    model.engine->add_layer(layer);
    CHECK(!model.engine->add_tier({nullptr, num_slots, WORKSPACE_BYTES, 0, true, false}));
    CHECK(!model.engine->pool(0).is_above(0, 0));
    CHECK(!model.engine->tiers_fault());
}

// llama.cpp puts a result where an input lay that no later node needs.
TEST(portions_have_the_inputs_of_before_the_first_node) {
    constexpr int64_t NUM_ROWS = 200;
    OnDevice device(NUM_LAYERS * NUM_EXPERTS, false, true);
    TierPlan small = device.plan;
    small.workspace_bytes = 16 * 1024;
    Model model(THREADS, 2 * NUM_USED, TYPE_F32, 4, false, &small);
    CHECK(model.engine->fill_tiers() == NO_FAILURE);
    std::minstd_rand random(29);
    LayerCall call(0, choose(random, NUM_ROWS), NUM_ROWS);
    std::vector<float> rows = call.rows;
    call.rows.resize(call.out.size());
    call.input.data = call.down.data = call.rows.data();
    CHECK(call.compute(model) == SUCCESS);
    call.out = call.rows;
    call.rows = rows;
    CHECK(call.is_right(model));
}

TEST(experts_of_a_batch_pass_through_staging_slots) {
    for (int32_t num_staging : {1, 2, 3}) {
        const OnDevice device(NUM_EXPERTS, false, false, num_staging);
        Model model(THREADS, NUM_LAYERS * NUM_EXPERTS, TYPE_F32, 4, false, &device.plan);
        model.engine->tier(0).state.streams_all = true;
        std::minstd_rand random(37);
        for (int64_t num_rows : {30, 30, 1, 60, 200, 3, 30}) run_whole_pass(model, random, num_rows);
        CHECK(tier_state(model).streamed > NUM_EXPERTS);
        CHECK(tier_state(model).streamed <= model.engine->state.hits);
        model.engine->withdraw();
        CHECK(model.engine->pool(0).high.num_unpinned() == NUM_LAYERS * NUM_EXPERTS);
    }
}

TEST(experts_pass_through_staging_slots_while_others_move_up_and_reads_fail) {
    const OnDevice device(NUM_EXPERTS, true, false, 2);
    Model model(THREADS, 2 * NUM_EXPERTS, TYPE_F32, 4, false, &device.plan);
    model.engine->tier(0).state.streams_all = true;
    std::minstd_rand random(41);
    std::atomic<int> num_reads{0};
    faults::answer_reads([&](int file, void *room, size_t length, off_t offset) {
        return num_reads++ % 100 == 99 ? -EIO : faults::read_truly(file, room, length, offset);
    });
    for (int i = 0; i < 100; ++i) {
        end_pass(model, run_pass(model, random, i % 3 ? 20 : 1));
        CHECK(!model.engine->tiers_fault());
    }
    CHECK(tier_state(model).streamed > 0);
    model.engine->withdraw();
    CHECK(model.engine->pool(0).high.num_unpinned() == 2 * NUM_EXPERTS);
}

TEST(a_batch_that_is_begun_again_takes_back_what_was_copied) {
    constexpr int64_t NUM_ROWS = 9;
    OnDevice device(NUM_EXPERTS, false, false, 2);
    Model model(THREADS, NUM_EXPERTS, TYPE_F32, 4, true, &device.plan);
    model.engine->tier(0).state.streams_all = true;
    std::vector<uint64_t> digests(NUM_LAYERS * NUM_EXPERTS, 1);  // every LOW copy is damaged
    model.engine->set_precision({0.4f, 0.7f, 0.5, digests.data(), nullptr, NUM_EXPERTS, 0});
    std::minstd_rand random(43);
    for (int i = 0; i < 40; ++i) run_whole_pass(model, random, NUM_ROWS);
    CHECK(tier_state(model).streamed > 0);
}

TEST(a_layer_that_is_begun_again_leaves_devices_what_they_began) {
    constexpr int64_t NUM_ROWS = 3;
    const std::vector<float> wishes = {5, 3, 2};  // HIGH, LOW, SKIP
    OnDevice device(NUM_LAYERS * NUM_EXPERTS / 2, false, true);
    TierPlan small = device.plan;
    small.workspace_bytes = 1200;  // three pairs in a portion
    Model model(THREADS, 4, TYPE_F32, 4, true, &small);
    std::vector<uint64_t> digests(NUM_LAYERS * NUM_EXPERTS, 1);  // every LOW copy is damaged
    model.engine->set_precision({0.4f, 0.7f, 0, digests.data(), nullptr, NUM_EXPERTS, 0});
    CHECK(model.engine->fill_tiers() == NO_FAILURE);
    std::minstd_rand random(31);
    std::vector<float> weights;
    for (int64_t row = 0; row < NUM_ROWS; ++row)
        weights.insert(weights.end(), wishes.begin(), wishes.end());
    for (int i = 0; i < 40; ++i) {
        for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
            LayerCall call(layer, choose(random, NUM_ROWS), NUM_ROWS);
            Tensor weight = make_tensor(TYPE_F32, 1, NUM_USED, NUM_ROWS, weights.data());
            CHECK(call.compute(model, &weight) == SUCCESS);
            for (size_t pair = 0; pair < call.chosen.size(); ++pair)
                CHECK(is_high(model, call, pair) || pair % NUM_USED == 2);
        }
        CHECK(end_pass(model, true) == NO_FAILURE);
    }
}

TEST(experts_move_up_while_passes_are_computed) {
    for (bool is_exclusive : {false, true}) {
        const OnDevice device(NUM_EXPERTS, is_exclusive);
        Model model(THREADS, 2 * NUM_EXPERTS, TYPE_F32, 4, false, &device.plan);
        std::minstd_rand random(19);
        run_until_promoted(model, random, NUM_EXPERTS);
        for (int64_t num_rows : {1, 30, 3, 1}) run_whole_pass(model, random, num_rows);
        model.engine->withdraw();
        CHECK(model.engine->pool(0).high.num_unpinned() == 2 * NUM_EXPERTS);
        CHECK(!model.engine->tiers_fault());
    }
}

TEST(what_the_host_has_to_read_leaves_it_again_for_an_exclusive_device) {
    const OnDevice device(NUM_EXPERTS, true);
    TierPlan small = device.plan;
    small.workspace_bytes = 1200;  // three pairs, fewer than a batch has of an expert
    Model model(THREADS, NUM_LAYERS * NUM_EXPERTS, TYPE_F32, 4, false, &small);
    std::minstd_rand random(29);
    run_until_promoted(model, random, NUM_EXPERTS);
    const int64_t misses = model.engine->state.misses;
    run_whole_pass(model, random, 100);
    CHECK(model.engine->state.misses > misses);
    CHECK(!model.engine->tiers_fault());
}

TEST(a_fault_in_the_books_of_devices_is_found) {
    const auto fault = [](const Model &model) {
        const char *found = model.engine->tiers_fault();
        return std::string(found ? found : "");
    };
    const OnDevice first(NUM_EXPERTS, true, true), second(1, false, true);
    Model model(THREADS, NUM_EXPERTS, TYPE_F32, 4, false, &first.plan);
    CHECK(model.engine->fill_tiers() == NO_FAILURE);
    CHECK(model.engine->add_tier(second.plan));
    Slots &host = model.engine->pool(0).high;
    Slots &there = *model.engine->tier(0).slots(0), &beside = *model.engine->tier(1).slots(0);
    CHECK(fault(model) == "");
    there.pin(0);
    CHECK(fault(model) == "a device's slot is pinned for no promotion");
    there.unpin(0);
    const int32_t slot = host.claim(0, {0})[0];  // the device has this expert
    CHECK(fault(model) == "");
    host.fill(slot);
    CHECK(fault(model) == "a slot is pinned for no promotion");
    host.unpin(slot);
    CHECK(fault(model) == "an expert on an exclusive device lies on the host too");
    host.drop(slot);
    beside.fill(beside.claim(0, {0})[0]);
    beside.unpin(0);
    CHECK(fault(model) == "two devices have slots for the same expert");
    beside.drop(0);
    model.engine->tier(0).state.is_lost = true;
    CHECK(fault(model) == "a lost device holds experts");
    model.engine->tier(0).lose();
    CHECK(fault(model) == "");
}

TEST(an_expert_that_leaves_an_exclusive_device_is_not_read_again) {
    const std::vector<int32_t> texts[] = {{0, 1, 2}, {3, 4, 5}};
    const OnDevice device(NUM_LAYERS * NUM_USED, true);
    Model model(THREADS, 3 * NUM_LAYERS * NUM_USED, TYPE_F32, 4, false, &device.plan);
    const auto is_there = [&](const std::vector<int32_t> &experts) {
        return std::all_of(experts.begin(), experts.end(), [&](int32_t expert) {
            for (int32_t layer = 0; layer < NUM_LAYERS; ++layer)
                if (model.engine->tier(0).slots(0)->state_of(layer, expert) != READY) return false;
            return true;
        });
    };
    for (int i = 0; i < 4; ++i) {
        std::vector<int32_t> chosen = texts[i % 2];  // of two rows, so that no times decide
        chosen.insert(chosen.end(), texts[i % 2].begin(), texts[i % 2].end());
        while (!is_there(texts[i % 2])) {
            for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
                LayerCall call(layer, chosen, 2);
                CHECK(call.compute(model) == SUCCESS && call.is_right(model));
            }
            CHECK(end_pass(model, true) == NO_FAILURE);
        }
    }
    CHECK(model.engine->state.misses == 2 * NUM_LAYERS * NUM_USED);
    CHECK(!model.engine->tiers_fault());
}

TEST(pools_change_and_reads_fail_while_experts_move_up) {
    const OnDevice device(2 * NUM_EXPERTS, true);
    Model model(THREADS, NUM_EXPERTS, TYPE_F32, 4, false, &device.plan);
    std::minstd_rand random(23);
    std::atomic<int> num_reads{0};
    faults::answer_reads([&](int file, void *room, size_t length, off_t offset) {
        return num_reads++ % 50 == 49 ? -EIO : faults::read_truly(file, room, length, offset);
    });
    for (int i = 0; i < 200; ++i) {
        const bool computed = run_pass(model, random, i % 10 == 9 ? 20 : 1);
        end_pass(model, computed);
        CHECK(!model.engine->tiers_fault());
        if (i % 20 == 19) model.engine->resize_pool(0, i % 40 == 39 ? NUM_EXPERTS : 2 * NUM_USED);
    }
    model.engine->withdraw();
    CHECK(model.engine->pool(0).high.num_unpinned() == model.engine->pool(0).high.num_slots());
}

// ------------------------------------------------------------------------- costs
namespace {

constexpr int32_t NUM_HERE = 100, ROWS = 16;  // experts, and of each
constexpr double HOST_S = 24e-6;               // for an expert

BatchShare all_here() {
    return {std::vector<int32_t>(NUM_HERE, ROWS), NUM_HERE * BatchCosts::work(ROWS), 0, 1000};
}

// How many experts are copied in the end, where these are the times of a copy, of a row on the device and
// of the host's expert.
int32_t copied_in_the_end(double copy_s, double row_s, double beside_s = HOST_S) {
    BatchCosts costs;
    costs.note_copy(1000, copy_s);
    int32_t count = 0;
    for (int i = 0; i < 62; i++) {
        count = costs.most_worth(all_here());
        const int32_t left = NUM_HERE - count;
        costs.note_host(left * BatchCosts::work(ROWS), count == 0, left * (count ? beside_s : HOST_S));
        if (count > 0) costs.note_copy(1000, copy_s), costs.note_device(ROWS, ROWS * row_s);
    }
    return count;
}

}  // namespace

TEST(a_batch_is_shared_so_that_both_are_done_together) {
    CHECK(copied_in_the_end(HOST_S, 1e-9) == 50);
    CHECK(copied_in_the_end(1e-9, 1e-9) > 98);
    CHECK(copied_in_the_end(HOST_S / 2, 1e-9) / 5 == 13);        // two of three
    CHECK(copied_in_the_end(1e-9, 2 * HOST_S / ROWS) / 3 == 11);  // one of three
}

TEST(nothing_is_copied_where_it_does_not_pay) {
    CHECK(copied_in_the_end(60 * HOST_S, 1e-9) == 0);
    CHECK(copied_in_the_end(1e-9, 1) == 0);
    CHECK(copied_in_the_end(1, 1e-9) == 0);
}

TEST(a_host_that_is_slower_beside_copies_does_without) {
    CHECK(copied_in_the_end(4 * HOST_S, 1e-9, 1.1 * HOST_S) > 10);
    CHECK(copied_in_the_end(4 * HOST_S, 1e-9, 2 * HOST_S) == 0);
}

TEST(a_device_that_began_slowly_is_tried_again) {
    TierCosts costs;
    costs.note_host(8, 8e-3);
    costs.note_device(8, 1.0, 1.0);  // it made its graph
    int32_t num_left = 0;
    for (int i = 0; i < 400; i++) {
        num_left = costs.most_worth(8, 8, 0, 0);
        if (num_left > 0) costs.note_device(num_left, 1e-4, 1e-4);
    }
    CHECK(num_left == 8);
    CHECK(costs.pays());
}

TEST(a_slow_device_is_left_alone_but_for_trials) {
    TierCosts costs;
    int32_t num_used = 0;
    for (int i = 0; i < 5120; i++) {
        costs.note_host(8, 1e-3);
        const int32_t count = costs.most_worth(8, 8, 0, 0);
        num_used += count > 0;
        if (count > 0) costs.note_device(count, 5e-3, 1e-3);
    }
    CHECK(num_used < 40);
    CHECK(!costs.pays());
}

TEST(an_expert_on_a_device_alone_is_read_where_that_is_sooner) {
    for (const double device_s : {1e-3, 50e-3}) {
        TierCosts costs;
        int32_t num_left = 0;
        for (int i = 0; i < 2000; i++) {
            costs.note_host(8, 8e-4);
            const int32_t num_there = 1 + i % 8;
            num_left = costs.most_worth(8, num_there, num_there, 4e-3);
            if (num_left > 0) costs.note_device(num_left, device_s, 1e-3);
        }
        CHECK(num_left == (device_s == 1e-3 ? 8 : 0));
        CHECK(!costs.pays());  // the host is faster with the experts in its slots
    }
}
