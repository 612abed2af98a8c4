#include "pass.hpp"

#include "clock.hpp"

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

}  // namespace

}  // namespace haversack

using namespace haversack;

// Returns the status of llama_decode, or a negative number where llama.cpp gave up.
extern "C" __attribute__((visibility("default"))) int32_t haversack_pass_compute(Pass *pass) {
    Owned owned(pass->owner);
    Working working(pass->num_threads, pass->spin_s);
    const double began_s = now_s(), waited_s = owner_waited_s;
    pass->gave_up = 1;
    const int32_t status = guarded<int32_t>(-1, [&] {
        const int32_t told = pass->decode(pass->context, *pass->batch);
        pass->gave_up = 0;
        return told;
    });
    const double ended_s = now_s();
    pass->pass_s = ended_s - began_s - (owner_waited_s - waited_s);
    if (working.team()) look(*pass, *working.team(), ended_s);
    return status;
}
