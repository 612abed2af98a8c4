#include "leaning.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine.hpp"

namespace haversack {

namespace {

// How much higher an expert with a copy ranks. Scores that are not finite say that an expert may not be
// chosen.
float lift(const float *scores, int32_t count, float bias) {
    float least = std::numeric_limits<float>::infinity(), most = -least;
    for (int32_t expert = 0; expert < count; expert++) {
        if (!std::isfinite(scores[expert])) continue;
        least = std::min(least, scores[expert]);
        most = std::max(most, scores[expert]);
    }
    return most > least ? bias * (most - least) : 0;
}

}  // namespace

int32_t lean(int32_t *ranked, const float *scores, const std::vector<bool> &resident, int32_t num_used,
             Leaning leaning) {
    const int32_t count = resident.size();
    if (std::any_of(scores, scores + count, [](float score) { return std::isnan(score); })) return 0;
    const float more = lift(scores, count, leaning.bias);
    std::vector<float> raised(scores, scores + count);
    for (int32_t expert = 0; expert < count; expert++)
        if (resident[expert]) raised[expert] += more;
    std::vector<int32_t> order(ranked, ranked + count);
    std::stable_sort(order.begin() + std::min(leaning.num_kept, num_used), order.end(),
                     [&](int32_t a, int32_t b) { return raised[a] > raised[b]; });
    std::vector<bool> chosen(count);
    for (int32_t i = 0; i < num_used; i++) chosen[order[i]] = true;
    const auto is_chosen = [&](int32_t expert) { return chosen[expert]; };
    const int32_t num_changed = std::count_if(ranked + num_used, ranked + count, is_chosen);
    if (num_changed) std::stable_partition(ranked, ranked + count, is_chosen);
    return num_changed;
}

// ---------------------------------------------------------------- the engine's
int32_t Engine::leaning_layer(int32_t number, int64_t num_experts) const {
    for (size_t place = 0; leans() && place < layers_.size(); place++)
        if (layers_[place].number == number)
            return pools_[layers_[place].pool].high.num_experts == num_experts ? place : NOWHERE;
    return NOWHERE;
}

// Also a copy that is on its way counts: its bytes are read already.
std::vector<bool> Engine::residents_of(const Layer &layer) const {
    const Pool &pool = pools_[layer.pool];
    std::vector<bool> found(pool.high.num_experts);
    for (int32_t expert = 0; expert < pool.high.num_experts; expert++)
        found[expert] = pool.high.find(layer.row, expert) != NOWHERE ||
                        pool.low.find(layer.row, expert) != NOWHERE ||
                        pool.is_above(layer.row, expert);
    return found;
}

// A router that is still to be learnt chooses alone: it is known when it has reproduced its choice.
void Engine::lean(int32_t layer, const Tensor *order) {
    if (state.predictions == BY_ROUTERS && attempts_left_[layer] > 0) return;
    const auto resident = residents_of(layers_[layer]);
    for (int64_t row = 0; row < order->ne[1]; row++)
        state.leaned += haversack::lean((int32_t *)order->row(row), (const float *)order->src[0]->row(row),
                                        resident, num_used_, leaning_);
}

}  // namespace haversack
