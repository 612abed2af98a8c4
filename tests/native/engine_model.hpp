// A small model of whole numbers in a file, an engine that computes its layers, and passes whose numbers
// are known.
#pragma once

#include "check.hpp"
#include "engine.hpp"
#include "fake_ring.hpp"
#include "faults.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <unistd.h>

namespace haversack {

constexpr int32_t NUM_LAYERS = 4, NUM_EXPERTS = 16, NUM_USED = 3, NUM_INPUTS = 12, NUM_INNER = 20;
constexpr int64_t FIRST_BYTE = 777, PAGE_BYTES = 4096;

enum Way { THREADS, FAKE_RING };
constexpr Way EVERY_WAY[] = {THREADS, FAKE_RING};

// Small whole numbers, so that sums are exact.
inline float weight_at(int64_t place) { return static_cast<float>((place * 2654435761u >> 7) % 7) - 3; }

// The engine's caller: what it predicts, and whether it wants an end.
inline std::atomic<bool> should_stop{false};
inline std::vector<std::vector<int32_t>> predicted;  // by layer

inline int32_t predict(int32_t layer, int32_t *experts) {
    const auto &likely = predicted[layer];
    std::copy(likely.begin(), likely.end(), experts);
    return static_cast<int32_t>(likely.size());
}

// Whether the books of a pool have no fault.
inline bool is_sound(Pool &pool) { return !pool.high.fault() && !pool.low.fault(); }

// A model of two matrices an expert in a file, and an engine that computes its layers.
struct Model {
    Model(Way way, int32_t num_slots, int32_t type = TYPE_F32, int num_readers = 4,
          bool has_low = false, const TierPlan *tier = nullptr)
        : type(type),
          num_bytes{NUM_INPUTS * NUM_INNER * number_bytes(),
                    NUM_INNER * NUM_INPUTS * number_bytes()} {
        write();
        if (way == FAKE_RING) fake = std::make_unique<FakeRing>();
        readers = std::make_unique<Readers>(num_readers, 2, nullptr, way == FAKE_RING);
        readers->add_file(file, false, nullptr);
        should_stop = false;
        predicted.assign(NUM_LAYERS, {});
        engine = std::make_unique<Engine>(Caller{[] { return should_stop.load(); }, predict},
                                          readers.get(), NUM_USED, 64);
        // A LOW slot counts as half of a HIGH one, though it has as much room here.
        const PoolBytes shared{2 * num_slots, {2, 1}, {NUM_USED, NUM_USED}};
        if (has_low) engine->add_pool(Pool(NUM_LAYERS, NUM_EXPERTS, shared, 0));
        else engine->add_pool(Pool(NUM_LAYERS, NUM_EXPERTS, num_slots, 0));
        for (int m = 0; m < 2; ++m) {
            stride[m] = (num_bytes[m] + 2 * PAGE_BYTES) / PAGE_BYTES * PAGE_BYTES;
            for (auto &level : rooms)
                level[m].reset(static_cast<uint8_t *>(
                    std::aligned_alloc(PAGE_BYTES, stride[m] * 2 * num_slots)));
        }
        for (int32_t number = 0; number < NUM_LAYERS; ++number) {
            Layer layer{number, number, 0, 2, {}};
            for (int32_t level : {HIGH, LOW}) {
                const int32_t source = level == HIGH ? number : low_layer(number);
                layer.matrices[level][0] = {
                    rooms[level][0].get(), stride[0], 64,  offset(source, 0), num_bytes[0],
                    NUM_INPUTS, NUM_INNER, 0, type, num_bytes[0]};
                layer.matrices[level][1] = {
                    rooms[level][1].get(), stride[1], 0,   offset(source, 1), num_bytes[1],
                    NUM_INNER, NUM_INPUTS, 0, type, num_bytes[1]};
            }
            engine->add_layer(layer);
        }
        if (tier) CHECK(engine->add_tier(*tier));
        engine->finish();
        if (has_low) engine->set_precision({0.4f, 0.7f, 0.3, nullptr, nullptr, 0, 0});
    }
    // The layer whose experts are the low copies of this one's.
    static int32_t low_layer(int32_t layer) { return (layer + 1) % NUM_LAYERS; }
    ~Model() {
        engine.reset();
        readers.reset();
        faults::answer_reads({});
        ::close(file);
    }

    int64_t number_bytes() const { return type == TYPE_F32 ? 4 : 2; }
    int64_t offset(int32_t layer, int m) const {
        return FIRST_BYTE + layer * NUM_EXPERTS * (num_bytes[0] + num_bytes[1]) +
               m * NUM_EXPERTS * num_bytes[0];
    }
    float weight(int32_t layer, int m, int32_t expert, int64_t i) const {
        return weight_at(offset(layer, m) + (expert * num_bytes[m]) + i * number_bytes());
    }
    void write() {
        char path[] = "/tmp/haversack-engine-XXXXXX";
        file = mkstemp(path);
        CHECK(file >= 0);
        unlink(path);
        std::vector<uint8_t> bytes(offset(NUM_LAYERS, 0));
        for (int64_t at = FIRST_BYTE; at < static_cast<int64_t>(bytes.size());
             at += number_bytes()) {
            const float value = weight_at(at);
            std::memcpy(&bytes[at], reinterpret_cast<const char *>(&value) + 4 - number_bytes(),
                        number_bytes());
        }
        CHECK(pwrite(file, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    }
    // What a layer gives for one expert and one row.
    std::vector<float> result(int32_t layer, int32_t expert, const float *row) const {
        std::vector<float> inner(NUM_INNER), out(NUM_INPUTS);
        for (int32_t i = 0; i < NUM_INNER; ++i) {
            for (int32_t j = 0; j < NUM_INPUTS; ++j)
                inner[i] += weight(layer, 0, expert, i * NUM_INPUTS + j) * row[j];
            inner[i] = as_stored(inner[i] > 0 ? inner[i] / 2 : 0);
        }
        for (int32_t i = 0; i < NUM_INPUTS; ++i)
            for (int32_t j = 0; j < NUM_INNER; ++j)
                out[i] += weight(layer, 1, expert, i * NUM_INNER + j) * inner[j];
        return out;
    }
    // Rows are cut to the type of the weights before they are multiplied.
    float as_stored(float value) const {
        if (type == TYPE_F32) return value;
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0xFFFF0000;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    const int32_t type;
    const int64_t num_bytes[2];
    int64_t stride[2];
    int file = -1;
    std::unique_ptr<FakeRing> fake;
    std::unique_ptr<Readers> readers;
    struct Free {
        void operator()(uint8_t *bytes) const { std::free(bytes); }
    };
    std::unique_ptr<uint8_t, Free> rooms[NUM_LEVELS][2];
    std::unique_ptr<Engine> engine;
    Cpu cpu{1};
};

inline std::vector<int32_t> some_experts(std::minstd_rand &random, int32_t count) {
    std::vector<int32_t> all(NUM_EXPERTS);
    for (int32_t i = 0; i < NUM_EXPERTS; ++i) all[i] = i;
    std::shuffle(all.begin(), all.end(), random);
    all.resize(count);
    return all;
}

// One call of the engine: `num_rows` rows that chose `num_used` experts each.
struct LayerCall {
    LayerCall(int32_t layer, std::vector<int32_t> chosen, int64_t num_rows)
        : layer(layer),
          num_rows(num_rows),
          num_used(chosen.size() / num_rows),
          chosen(std::move(chosen)),
          rows(num_rows * NUM_INPUTS),
          inner(this->chosen.size() * NUM_INNER),
          halved(inner.size()),
          out(this->chosen.size() * NUM_INPUTS) {
        for (size_t i = 0; i < rows.size(); ++i)
            rows[i] = static_cast<float>((i * 7 + layer) % 5) - 2;
        ids = make_tensor(TYPE_I32, num_used, num_rows, 1, this->chosen.data());
        input = make_tensor(TYPE_F32, NUM_INPUTS, 1, num_rows, rows.data());
        up = make_tensor(TYPE_F32, NUM_INNER, num_used, num_rows, inner.data());
        act = make_tensor(TYPE_F32, NUM_INNER, num_used, num_rows, halved.data());
        down = make_tensor(TYPE_F32, NUM_INPUTS, num_used, num_rows, out.data());
        up.op = down.op = ggml().op_mul_mat_id, act.op = ggml().op_unary;
        up.src[1] = &input, up.src[2] = &ids, act.src[0] = &up, down.src[1] = &act,
        down.src[2] = &ids;
    }
    Status compute(Model &model, const Tensor *weights = nullptr) {
        return model.engine->compute(layer, {&up, &act, &down}, {{0, 0}, {2, 1}}, model.cpu,
                                     weights);
    }
    bool is_right(const Model &model) const {
        for (size_t pair = 0; pair < chosen.size(); ++pair) {
            const auto right =
                model.result(layer, chosen[pair], &rows[pair / num_used * NUM_INPUTS]);
            if (!std::equal(right.begin(), right.end(), &out[pair * NUM_INPUTS])) return false;
        }
        return true;
    }

    const int32_t layer;
    const int64_t num_rows, num_used;
    std::vector<int32_t> chosen;
    std::vector<float> rows, inner, halved, out;
    Tensor ids, input, up, act, down;
};

inline std::vector<int32_t> choose(std::minstd_rand &random, int64_t num_rows,
                            int32_t num_used = NUM_USED) {
    std::vector<int32_t> chosen;
    for (int64_t row = 0; row < num_rows; ++row)
        for (int32_t expert : some_experts(random, num_used)) chosen.push_back(expert);
    return chosen;
}

// A pass of all layers; whether all were computed, and then rightly. Predictions of the next layers
// are right for some experts.
inline bool run_pass(Model &model, std::minstd_rand &random, int64_t num_rows,
              int32_t num_used = NUM_USED) {
    std::vector<std::vector<int32_t>> chosen;
    for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
        chosen.push_back(choose(random, num_rows, num_used));
        predicted[layer] = some_experts(random, 2 + random() % 3);
        if (random() % 3)
            predicted[layer] = {chosen[layer].begin(), chosen[layer].begin() + num_used};
    }
    for (int32_t layer = 0; layer < NUM_LAYERS; ++layer) {
        LayerCall call(layer, chosen[layer], num_rows);
        if (call.compute(model) != SUCCESS) return false;
        CHECK(call.is_right(model));
        CHECK(is_sound(model.engine->pool(0)));
    }
    return true;
}

inline Failure end_pass(Model &model, bool computed) {
    const Failure failure = model.engine->end_pass(computed);
    CHECK(is_sound(model.engine->pool(0)));
    model.engine->state.failure = NO_FAILURE;
    should_stop = false;
    return failure;
}

inline void run_whole_pass(Model &model, std::minstd_rand &random, int64_t num_rows,
                    int32_t num_used = NUM_USED) {
    CHECK(run_pass(model, random, num_rows, num_used));
    CHECK(end_pass(model, true) == NO_FAILURE);
}

}  // namespace haversack
