// Layers computed by the engine from a file, through slots of any number, while reads fail, come
// short and late, passes are stopped and the engine goes away: the numbers are those of the file's
// experts.
#include "engine_model.hpp"

#include <cerrno>
#include <set>
#include <thread>
#include <tuple>

using namespace haversack;

namespace {

// The reads of one matrix of an expert get this answer, the others the file's own.
faults::Answer only(const Model &model, int32_t layer, int m, int32_t expert,
                    faults::Answer answer) {
    const int64_t first = model.offset(layer, m) + expert * model.num_bytes[m];
    const int64_t start = first - first % PAGE_BYTES;
    const size_t length =
        (first - start + model.num_bytes[m] + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return [=](int file, void *room, size_t count, off_t offset) {
        const bool is_it = offset >= start && offset + count == start + length;
        return (is_it ? answer : faults::read_truly)(file, room, count, offset);
    };
}

// Return when no read waits or is under way.
void wait_until_idle(const Model &model) {
    for (Counts counts = model.readers->counts(); counts.num_ahead || counts.num_reading;
         counts = model.readers->counts())
        std::this_thread::yield();
}

ssize_t input_error(int, void *, size_t, off_t) { return -EIO; }
ssize_t end_of_file(int, void *, size_t, off_t) { return 0; }

// The numbers of one pair: those of the expert's HIGH copy, those of its LOW one, which are another
// layer's, or zeros.
int32_t level_of(const Model &model, const LayerCall &call, size_t pair) {
    const float *row = &call.rows[pair / call.num_used * NUM_INPUTS];
    const float *out = &call.out[pair * NUM_INPUTS];
    const auto is = [&](const std::vector<float> &numbers) {
        return std::equal(numbers.begin(), numbers.end(), out);
    };
    if (is(model.result(call.layer, call.chosen[pair], row))) return HIGH;
    if (is(model.result(Model::low_layer(call.layer), call.chosen[pair], row))) return LOW;
    CHECK(is(std::vector<float>(NUM_INPUTS)));
    return SKIP;
}

// A pass with weights that want each row's first expert HIGH, the second LOW and the third not at all.
// Returns false where a read failed.
bool run_pass_of_levels(Model &model, std::minstd_rand &random, int64_t num_rows, int *counts) {
    const std::vector<int32_t> wishes = {HIGH, LOW, SKIP};
    for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
        const int32_t later = std::min(layer + 1, NUM_LAYERS - 1);
        predicted[later] = some_experts(random, 2);
        LayerCall call(layer, choose(random, num_rows), num_rows);
        std::vector<float> weights;
        for (int64_t row = 0; row < num_rows; ++row) weights.insert(weights.end(), {5, 3, 2});
        Tensor weight = make_tensor(TYPE_F32, 1, NUM_USED, num_rows, weights.data());
        std::fill(call.out.begin(), call.out.end(), 99.0f);
        if (call.compute(model, &weight) != SUCCESS) return false;
        CHECK(is_sound(model.engine->pool(0)));
        for (size_t pair = 0; pair < call.chosen.size(); ++pair) {
            const int32_t level = level_of(model, call, pair);
            CHECK(level <= wishes[pair % NUM_USED] || num_rows > 7);  // never worse than wanted
            counts[level]++;
        }
    }
    return true;
}

}  // namespace

TEST(every_number_of_slots_gives_the_same_numbers) {
    for (Way way : EVERY_WAY) {
        for (int32_t num_slots : {NUM_USED, 2 * NUM_USED, NUM_EXPERTS, NUM_LAYERS * NUM_EXPERTS}) {
            for (int32_t predictions : {NO_PREDICTIONS, BY_CALLER}) {
                Model model(way, num_slots);
                model.engine->state.predictions = predictions;
                std::minstd_rand random(num_slots);
                for (int64_t num_rows : {1, 1, 1, 2, 7, 1, 30, 1, 12, 1})
                    run_whole_pass(model, random, num_rows);
            }
        }
    }
}

TEST(rows_are_cut_to_the_type_of_the_weights_once) {
    Model model(THREADS, 8, TYPE_BF16);
    std::minstd_rand random(3);
    for (int64_t num_rows : {1, 5, 40, 1}) run_whole_pass(model, random, num_rows);
}

TEST(one_expert_a_row_works_in_a_single_slot) {
    for (Way way : EVERY_WAY) {
        Model model(way, 1);
        std::minstd_rand random(5);
        for (int64_t num_rows : {1, 1, 4, 25, 1}) run_whole_pass(model, random, num_rows, 1);
    }
}

TEST(a_read_that_fails_or_comes_short_fails_its_pass_alone) {
    for (Way way : EVERY_WAY) {
        for (auto answer : {input_error, end_of_file}) {
            for (int m : {0, 1}) {
                Model model(way, 2 * NUM_USED);
                std::minstd_rand random(7);
                run_whole_pass(model, random, 1);
                model.readers->drain();
                faults::answer_reads(only(model, 1, m, 9, answer));
                for (int64_t num_rows : {1, 20}) {
                    std::vector<int32_t> chosen(num_rows * NUM_USED);
                    for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = 9 + i % NUM_USED;
                    LayerCall call(1, chosen, num_rows);
                    CHECK(call.compute(model) == COMPUTE_FAILED);
                    const EngineState &state = model.engine->state;
                    CHECK(state.failed_error == (answer == input_error ? EIO : FILE_ENDED));
                    // Its own, or a neighbour's that lies in its last page and was done before.
                    const int64_t end = model.offset(1, m) + 10 * model.num_bytes[m];
                    CHECK(state.failed_offset < end + -end % PAGE_BYTES + PAGE_BYTES);
                    LayerCall next(2, choose(random, 1), 1);
                    CHECK(next.compute(model) == COMPUTE_FAILED);  // the pass is lost
                    CHECK(end_pass(model, false) == READ_FAILED);
                }
                model.readers->drain();
                faults::answer_reads({});
                run_whole_pass(model, random, 1);
                run_whole_pass(model, random, 20);
            }
        }
    }
}

TEST(a_prefetch_that_fails_costs_nothing_but_another_read) {
    for (Way way : EVERY_WAY) {
        Model model(way, NUM_EXPERTS);
        model.engine->state.predictions = BY_CALLER;
        std::atomic<int> num_failures{1};
        faults::answer_reads(
            only(model, 1, 1, 9, [&](int file, void *room, size_t length, off_t offset) {
                return num_failures-- > 0 ? -EIO : faults::read_truly(file, room, length, offset);
            }));
        predicted[1] = {9, 10};
        LayerCall first(0, {1, 2, 3}, 1), second(1, {9, 10, 11}, 1), third(2, {1, 2, 3}, 1),
            last(3, {1, 2, 3}, 1);
        for (LayerCall *call : {&first, &second, &third, &last}) {
            CHECK(call->compute(model) == SUCCESS);
            CHECK(call->is_right(model));
            wait_until_idle(model);  // a prefetch that fails once it is demanded fails the pass
        }
        CHECK(end_pass(model, true) == NO_FAILURE);
        CHECK(num_failures < 0);
        CHECK(model.engine->prefetcher().counts.right == 2);
    }
}

TEST(a_caller_that_wants_an_end_gets_it_while_reads_are_under_way) {
    for (int64_t num_rows : {1, 20}) {
        Model model(FAKE_RING, 2 * NUM_USED);
        std::minstd_rand random(11);
        run_whole_pass(model, random, 1);
        model.fake->holds = true;
        LayerCall call(0, choose(random, num_rows), num_rows);
        const double waited_s = model.readers->counts().wait_s;
        std::thread stops([&] {
            model.fake->await_held(1);
            should_stop = true;
            while (model.readers->counts().wait_s == waited_s) std::this_thread::yield();
            model.fake->release();  // the call has given up, and waits for its reads to end
        });
        CHECK(call.compute(model) == COMPUTE_FAILED);
        stops.join();
        CHECK(end_pass(model, false) == STOPPED);
        run_whole_pass(model, random, num_rows);
    }
}

TEST(an_engine_that_goes_away_has_ended_its_prefetches) {
    for (Way way : EVERY_WAY) {
        Model model(way, NUM_LAYERS * NUM_EXPERTS);
        model.engine->state.predictions = BY_CALLER;
        std::minstd_rand random(13);
        run_whole_pass(model, random, 1);
        model.readers->drain();
        if (model.fake) model.fake->holds = true;
        predicted[1] = {}, predicted[0] = {};
        const auto absent = [&](int32_t layer) {
            std::vector<int32_t> found;
            for (int32_t expert = 0; expert < NUM_EXPERTS; ++expert)
                if (model.engine->pool(0).high.find(layer, expert) == NOWHERE) found.push_back(expert);
            return found;
        };
        CHECK(model.engine->prefetcher().predicted(1, absent(1), 1) > 0);
        std::deque<std::pair<int32_t, int32_t>> warm;
        for (int32_t expert : absent(2)) warm.emplace_back(2, expert);
        model.engine->prefetcher().start_warm(warm);
        if (model.fake) model.fake->await_held(2);
        std::thread releases([&] {
            if (model.fake) model.fake->release();
        });
        model.engine.reset();
        releases.join();
        model.readers->drain();
    }
}

TEST(a_warm_start_fills_slots_while_passes_go_on) {
    for (Way way : EVERY_WAY) {
        for (bool fails : {false, true}) {
            Model model(way, 2 * NUM_EXPERTS);
            std::minstd_rand random(17);
            std::atomic<unsigned> number{0};
            if (fails)
                faults::answer_reads([&](int file, void *room, size_t length, off_t offset) {
                    // misses must come: the warm start's alone have whole layers of the last two
                    const bool is_warm = offset >= model.offset(2, 0) && number++ % 3 == 0;
                    return is_warm ? -EIO : faults::read_truly(file, room, length, offset);
                });
            std::deque<std::pair<int32_t, int32_t>> wanted;
            for (int32_t expert = 0; expert < NUM_EXPERTS; ++expert)
                wanted.emplace_back(2, expert), wanted.emplace_back(3, expert);
            model.engine->prefetcher().start_warm(wanted);
            for (int i = 0; i < 10; ++i) {
                for (int32_t layer : {0, 1}) {
                    LayerCall call(layer, choose(random, 1), 1);
                    CHECK(call.compute(model) == SUCCESS);
                    CHECK(call.is_right(model));
                    CHECK(is_sound(model.engine->pool(0)));
                }
                CHECK(end_pass(model, false) == NO_FAILURE);
            }
            model.engine->prefetcher().withdraw();
            model.readers->drain();
            CHECK(model.engine->prefetcher().not_warm().size() <= wanted.size());
            faults::answer_reads({});
            for (int i = 0; i < 5; ++i) run_whole_pass(model, random, 1);
        }
    }
}

TEST(pools_grow_and_shrink_between_passes) {
    Model model(THREADS, NUM_LAYERS * NUM_EXPERTS);
    model.engine->state.predictions = BY_CALLER;
    std::minstd_rand random(19);
    for (int32_t num_slots : {64, 5, 40, NUM_USED, 64}) {
        model.engine->resize_pool(0, num_slots);
        for (int64_t num_rows : {1, 20, 1}) run_whole_pass(model, random, num_rows);
    }
}

// Drives fail at random, the caller stops at random, and every pass that was computed is right.
TEST(whatever_fails_the_passes_that_end_well_are_right) {
    for (Way way : EVERY_WAY) {
        for (int32_t num_slots : {NUM_USED, 10, 40}) {
            Model model(way, num_slots);
            model.engine->state.predictions = BY_CALLER;
            std::minstd_rand random(num_slots);
            std::atomic<unsigned> state{1};
            faults::answer_reads([&](int file, void *room, size_t length, off_t offset) -> ssize_t {
                const unsigned dice = state.fetch_add(1) * 2654435761u >> 22;
                if (dice < 8) return -EIO;
                if (dice < 12) return 0;
                if (dice < 60) return -EINTR;
                if (dice < 90 && way == FAKE_RING) return dice % 2 ? -EAGAIN : -ECANCELED;
                return faults::read_truly(file, room, dice < 200 ? 1 + length / 2 : length, offset);
            });
            if (model.fake) model.fake->holds = true;
            std::thread kernel([&] {
                while (model.fake && model.fake->holds) {
                    model.fake->await_held(1);
                    model.fake->serve(2);
                }
            });
            int num_whole = 0, num_failed = 0;
            for (int pass = 0; pass < 60; ++pass) {
                const int64_t num_rows = pass % 7 == 6 ? 20 : 1 + pass % 3;
                should_stop = random() % 10 == 0;
                const bool computed = run_pass(model, random, num_rows);
                num_whole += computed, num_failed += !computed;
                const Failure failure = end_pass(model, computed);
                CHECK(computed == (failure == NO_FAILURE));
            }
            CHECK(num_whole > 0 && num_failed > 0);
            if (model.fake) model.fake->release();
            kernel.join();
        }
    }
}

TEST(experts_are_used_at_the_level_of_their_weight_or_better) {
    for (Way way : EVERY_WAY) {
        for (int32_t num_slots : {3 * NUM_USED, 2 * NUM_EXPERTS, 4 * NUM_EXPERTS}) {
            for (int32_t predictions : {NO_PREDICTIONS, BY_CALLER}) {
                Model model(way, num_slots, TYPE_F32, 4, true);
                model.engine->state.predictions = predictions;
                std::minstd_rand random(num_slots);
                int counts[3] = {};
                for (int i = 0; i < 20; ++i) {
                    for (int64_t num_rows : {1, 1, 3, 1, 12}) {
                        CHECK(run_pass_of_levels(model, random, num_rows, counts));
                        CHECK(end_pass(model, true) == NO_FAILURE);
                        model.engine->balance();
                        CHECK(is_sound(model.engine->pool(0)));
                    }
                }
                CHECK(counts[HIGH] > 0);
                if (num_slots < 4 * NUM_EXPERTS) CHECK(counts[LOW] > 0 && counts[SKIP] > 0);
                CHECK(model.engine->state.saved_bytes > 0);
            }
        }
    }
}

TEST(reads_of_low_copies_that_fail_fail_their_pass_alone) {
    for (Way way : EVERY_WAY) {
        for (auto answer : {input_error, end_of_file}) {
            Model model(way, 3 * NUM_USED, TYPE_F32, 4, true);
            model.engine->state.predictions = BY_CALLER;
            std::minstd_rand random(19);
            int counts[3] = {}, failed = 0;
            std::atomic<unsigned> number{0};
            faults::answer_reads([&](int file, void *room, size_t length, off_t offset) {
                return number++ % 50 == 49 ? answer(file, room, length, offset)
                                           : faults::read_truly(file, room, length, offset);
            });
            for (int i = 0; i < 100; ++i) {
                const bool computed = run_pass_of_levels(model, random, 1 + i % 3, counts);
                failed += !computed;
                CHECK(end_pass(model, computed) == (computed ? NO_FAILURE : READ_FAILED));
                model.engine->balance();
            }
            CHECK(failed > 0 && failed < 100 && counts[LOW] > 0);
            model.readers->drain();
            faults::answer_reads({});
        }
    }
}

TEST(a_damaged_low_copy_is_told_once_and_read_high) {
    Model model(THREADS, 3 * NUM_USED, TYPE_F32, 4, true);
    std::vector<uint64_t> digests(NUM_LAYERS * NUM_EXPERTS, 1);  // of no record
    model.engine->set_precision({0.4f, 0.7f, 0, digests.data(), nullptr, NUM_EXPERTS, 0});
    std::minstd_rand random(23);
    int counts[3] = {};
    for (int i = 0; i < 40; ++i) {
        CHECK(run_pass_of_levels(model, random, 1, counts));
        CHECK(end_pass(model, true) == NO_FAILURE);
        model.engine->balance();
    }
    CHECK(counts[LOW] == 0 && counts[SKIP] > 0);
    auto &damaged = model.engine->low_copies().damaged;
    CHECK(damaged.size() > 0);
    std::set<std::tuple<int32_t, int32_t, int32_t>> told;
    for (const Record &record : damaged) told.insert({record.slice, record.layer, record.expert});
    CHECK(told.size() == damaged.size());
}

TEST(an_idle_drive_reads_high_copies_in_place_of_low_ones) {
    Model model(THREADS, 3 * NUM_USED, TYPE_F32, 4, true);
    std::minstd_rand random(29);
    int counts[3] = {};
    for (int i = 0; i < 10; ++i) {
        CHECK(run_pass_of_levels(model, random, 1, counts));
        CHECK(end_pass(model, true) == NO_FAILURE);
    }
    for (int i = 0; i < 50; ++i) {
        for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
            LayerCall call(layer, {layer < 2 ? 1 : 2, 3, 5}, 1);  // those that are skipped are none
            std::vector<float> weights = {5, 3, 2};
            Tensor weight = make_tensor(TYPE_F32, 1, NUM_USED, 1, weights.data());
            CHECK(call.compute(model, &weight) == SUCCESS);
            wait_until_idle(model);
        }
        CHECK(end_pass(model, true) == NO_FAILURE);
        model.engine->balance();
    }
    CHECK(is_sound(model.engine->pool(0)));
}
