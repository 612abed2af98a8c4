#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace haversack {

int32_t Table::num_unpinned() const { return std::count(pins, pins + num_slots, 0); }

void Table::use(int32_t row, const int32_t *experts, int32_t count) {
    if (row <= clock[ROW] && clock[CLOCK] > 0) {
        clock[PASSES] += 1;
        clock[UNIT] *= growth;
        if (clock[UNIT] > 1e100) {
            for (int32_t key = 0; key < num_rows * num_experts; key++) faded[key] /= clock[UNIT];
            clock[UNIT] = 1;
        }
    }
    clock[ROW] = row;
    clock[CLOCK] += 1;
    for (int32_t i = 0; i < count; i++) {
        int32_t key = row * num_experts + experts[i];
        uses[key] += 1;
        last_pass[key] = clock[PASSES];
        last_use[key] = clock[CLOCK];
        faded[key] += clock[UNIT];
    }
}

bool Table::claim(int32_t row, const int32_t *experts, int32_t count, int32_t *slots) {
    std::vector<int32_t> free;
    for (int32_t slot = 0; slot < num_slots && (int32_t)free.size() < count; slot++)
        if (state[slot] == SLOT_EMPTY && pins[slot] == 0) free.push_back(slot);
    if ((int32_t)free.size() < count) evict(count - free.size(), free);
    if ((int32_t)free.size() < count) return false;
    for (int32_t i = 0; i < count; i++) {
        slots[i] = free[i];
        pins[free[i]] += 1;
        owner[free[i]] = row * num_experts + experts[i];
        slot_of[owner[free[i]]] = free[i];
        state[free[i]] = SLOT_LOADING;
    }
    return true;
}

void Table::drop(int32_t slot) {
    if (owner[slot] != NOWHERE) slot_of[owner[slot]] = NOWHERE;
    owner[slot] = NOWHERE;
    state[slot] = SLOT_EMPTY;
}

// Empty `count` slots and the spare ones, the first to go first.
void Table::evict(int32_t count, std::vector<int32_t> &evicted) {
    std::vector<std::pair<double, int32_t>> held;  // score and key: the order of going
    for (int32_t slot = 0; slot < num_slots; slot++)
        if (state[slot] != SLOT_EMPTY && pins[slot] == 0)
            held.emplace_back(score(owner[slot]), owner[slot]);
    size_t num_going = std::min<size_t>(held.size(), count + num_spare);
    std::partial_sort(held.begin(), held.begin() + num_going, held.end());
    for (size_t i = 0; i < num_going; i++) {
        evicted.push_back(slot_of[held[i].second]);
        drop(evicted.back());
    }
}

double Table::score(int32_t key) const {
    int32_t row = key / num_experts;
    int32_t now = (int32_t)clock[ROW];
    int32_t distance = (row - now - 1 + num_rows) % num_rows + 1;
    bool was_lately = last_pass[key] == clock[PASSES] - (row > now);
    double chance = faded[key] / (half_life * clock[UNIT]);
    chance += lately * was_lately;
    chance += recency * last_use[key] / (clock[CLOCK] + 1);
    return chance / std::sqrt((double)distance);
}

}  // namespace haversack
