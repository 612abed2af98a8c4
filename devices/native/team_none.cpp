// Systems on which llama.cpp's own threads compute its graphs: teams replace GCC's OpenMP on Linux.
#include "openmp.hpp"
#include "team.hpp"

namespace haversack {

thread_local Rank *current_rank = nullptr;

struct Team::Helper {};

int take_over_openmp(void *) { return 0; }

Team &Team::own() {
    static thread_local Team team;
    return team;
}
Team::~Team() = default;
void Team::set(int, double) {}
double Team::delayed_s() { return -1; }

Fiber::~Fiber() = default;

}  // namespace haversack
