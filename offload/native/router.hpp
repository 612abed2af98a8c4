// How a layer's router chooses experts, read from llama.cpp's graph, so that a later layer's choice can
// be predicted from an earlier layer's router input (Fate, arXiv 2502.12224; HOBBIT, arXiv 2411.01433,
// section 3.4).
#pragma once

#include <vector>

#include "cpu.hpp"
#include "leaning.hpp"

namespace haversack {

struct Router {
    const float *weight = nullptr;  // (experts, inputs)
    const float *score_bias = nullptr, *choice_bias = nullptr;  // (experts,) or null
    int32_t num_experts = 0, num_inputs = 0, num_used = 0;
    bool sigmoid = false;  // how a score becomes a probability; else softmax
    bool by_scores = false;  // it chooses by scores, which become probabilities later
    int32_t num_groups = 1, groups_used = 1;  // experts of the best groups alone may be chosen

    bool is_known() const { return weight != nullptr; }
    // The experts that it chooses from `input` (inputs,) and the `extra` next ones, the likeliest first.
    std::vector<int32_t> choose(const float *input, int32_t extra = 0) const;
    // Those that it chooses if it leans to the experts in `resident` (by number).
    std::vector<int32_t> choose(const float *input, const std::vector<bool> &resident,
                                Leaning leaning) const;
    // The weights of `experts`, which it chose from `input`, up to a factor.
    std::vector<float> weights(const float *input, const std::vector<int32_t> &experts) const;
    // The experts that at least two of the rows `inputs` (F32) choose, those of most rows first. Of
    // many rows only some are looked at.
    std::vector<int32_t> popular(const Tensor *inputs, Cpu &cpu) const;

  private:
    float score(const float *input, int32_t expert) const;
    std::vector<float> scores(const float *input) const;
    std::vector<int32_t> best(std::vector<float> scores, int32_t count) const;
    void to_worth(std::vector<float> &scores, bool only_order) const;
    std::vector<int32_t> ranked(const std::vector<float> &worth, int32_t count) const;
    void to_probabilities(std::vector<float> &scores) const;
    void keep_best_groups(std::vector<float> &worth) const;
};

// The input of the router whose choice `ids` is; null where it cannot be told.
const Tensor *router_input(const Tensor *ids);

// What the router's choice `ids` was made from: probabilities, or scores where those come later; null where
// llama.cpp names neither.
const Tensor *router_probabilities(const Tensor *ids);

// The weights (1, used, rows) with which llama.cpp adds up the results of the chosen experts `ids`: the
// last that were made between the choice and `graph`, which begins after them. Null where there are none.
const Tensor *router_weights(const Graph *graph, const Tensor *ids);

// How the router chooses whose choice `ids` is, a tensor of a graph that was computed. It is unknown
// where the graph has another form, and where what it chooses from its input is not what was chosen:
// then the form was misread, or the input's memory is in use again.
Router learn_router(const Tensor *ids);

}  // namespace haversack
