#include "pass.hpp"

#include "clock.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#define API extern "C" __attribute__((visibility("default")))

namespace haversack {

namespace {

constexpr double LOOK_S = 5e-3;  // from one look at a team's delays to the next

// Has the calling thread's team compute what this thread does with llama.cpp.
class Working {
  public:
    Working(int num_threads, double spin_s) : team_(num_threads ? &Team::own() : nullptr) {
        if (team_) team_->set(num_threads, spin_s);
    }
    ~Working() {
        if (team_) team_->rest();
    }
    Team *team() { return team_; }

  private:
    Team *const team_;
};

// Look up the delays of `team` since the last look, if that is some time ago.
void look(Pass &pass, Team &team, double now) {
    const bool knows = pass.team == &team;
    pass.delayed_s = 0;
    if (knows && pass.is_single_row && now - pass.looked_s < LOOK_S) return;
    const double seen_s = team.delayed_s();
    if (knows && pass.is_single_row && seen_s >= 0) pass.delayed_s = seen_s - pass.seen_delayed_s;
    pass.team = &team;
    pass.looked_s = now;
    pass.seen_delayed_s = seen_s;
}

// Returns the first token with the highest of the logits, -1 if that is not finite.
int32_t likeliest(const float *logits, int32_t count) {
    float highest = -std::numeric_limits<float>::infinity();
    bool is_number = true;
    for (int32_t i = 0; i < count; i++) {
        highest = logits[i] > highest ? logits[i] : highest;
        is_number &= logits[i] == logits[i];
    }
    if (!is_number || !std::isfinite(highest)) return -1;
    return static_cast<int32_t>(std::find(logits, logits + count, highest) - logits);
}

int32_t compute(Pass &pass) {
    Owned owned(pass.owner);
    Working working(pass.num_threads, pass.spin_s);
    const double began_s = now_s(), waited_s = owner_waited_s;
    pass.gave_up = 1;
    const int32_t status = guarded<int32_t>(-1, [&] {
        const int32_t told = pass.decode(pass.context, *pass.batch);
        pass.gave_up = 0;
        return told;
    });
    const double ended_s = now_s();
    pass.pass_s = ended_s - began_s - (owner_waited_s - waited_s);
    if (working.team()) look(pass, *working.team(), ended_s);
    pass.failure = pass.end ? pass.end(pass.engine, status == 0) : 0;
    return status;
}

// Note what the pass just computed gave. Returns the token of the next one, -1 for none.
int32_t next_token(const Pass &pass, Steps &steps) {
    const int32_t at = steps.num_done++;
    const float *logits = steps.logits_after(pass.context, -1);
    if (steps.given) {
        std::copy_n(logits, steps.num_logits, steps.logits + int64_t(at) * steps.num_logits);
        return steps.num_done < steps.most ? steps.given[steps.num_done] : -1;
    }
    const int32_t next = steps.likeliest[at] = likeliest(logits, steps.num_logits);
    return next < 0 || steps.ends(steps.vocabulary, next) ? -1 : next;
}

}  // namespace

}  // namespace haversack

using namespace haversack;

// Returns the status of llama_decode, or a negative number where llama.cpp gave up.
API int32_t haversack_pass_compute(Pass *pass) { return compute(*pass); }

// Compute the batch's only row, and then further ones. Returns as haversack_pass_compute, of the
// last pass; `delayed_s` is of all.
API int32_t haversack_pass_go_on(Pass *pass, Steps *steps) {
    const double end_s = now_s() + steps->most_s;
    double delayed_s = steps->passes_s = steps->first_s = 0;
    int32_t status = 0;
    for (steps->num_done = 0; steps->num_done < steps->most;) {
        status = compute(*pass);
        delayed_s += pass->delayed_s;
        if (status != 0 || pass->failure != 0) break;
        if (steps->num_done == 0) steps->first_s = pass->pass_s;
        steps->passes_s += pass->pass_s;
        const int32_t token = next_token(*pass, *steps);
        if (token < 0 || now_s() >= end_s) break;
        if (steps->stops && steps->stops(steps->watch, token)) break;
        pass->batch->tokens[0] = token;
        pass->batch->positions[0]++;
    }
    pass->delayed_s = delayed_s;
    return status;
}
