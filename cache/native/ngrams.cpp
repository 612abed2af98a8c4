#include "ngrams.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr int SET_ENTRIES = 4;  // among which a context is searched
constexpr uint32_t COUNT_MASK = 15;

uint32_t count_of(const Ngrams::Entry &entry) { return entry.mark & COUNT_MASK; }

Ngrams::Entry *entry_of(Ngrams::Entry *set, uint32_t tag) {
    for (Ngrams::Entry *entry = set; entry < set + SET_ENTRIES; ++entry)
        if (count_of(*entry) && (entry->mark & ~COUNT_MASK) == tag) return entry;
    return nullptr;
}

}  // namespace

Ngrams::Ngrams(Entry *entries, int64_t num_entries)
    : entries_(entries), num_sets_(num_entries / SET_ENTRIES) {}

Ngrams::Place Ngrams::place_of(const int32_t *before, int num_before, int order) const {
    uint64_t hash = uint64_t(order) + 1;
    for (int i = num_before - ORDERS[order]; i < num_before; ++i) {
        hash = (hash ^ uint32_t(before[i])) * 0x9E3779B97F4A7C15ull;
        hash ^= hash >> 29;
    }
    return {entries_ + hash % num_sets_ * SET_ENTRIES, uint32_t(hash >> 32) & ~COUNT_MASK};
}

Ngrams::Found Ngrams::find(const int32_t *before, int num_before) const {
    for (int order = NUM_ORDERS - 1; order >= 0; --order) {
        if (ORDERS[order] > num_before) continue;
        const Place place = place_of(before, num_before, order);
        if (const Entry *entry = entry_of(place.set, place.tag))
            return {order, int(count_of(*entry)), entry->next};
    }
    return {-1, 0, 0};
}

void Ngrams::learn(const int32_t *before, int num_before, int32_t next) {
    for (int order = 0; order < NUM_ORDERS && ORDERS[order] <= num_before; ++order) {
        const auto [set, tag] = place_of(before, num_before, order);
        Entry *entry = entry_of(set, tag);
        if (!entry)  // the one that came true least often may leave
            entry = std::min_element(set, set + SET_ENTRIES, [](const Entry &a, const Entry &b) {
                return count_of(a) < count_of(b);
            });
        else if (entry->next == next) {
            if (count_of(*entry) < COUNT_MASK) ++entry->mark;
            continue;
        }
        // What came true several times leaves only after it was wrong, or in the way, several times.
        if (count_of(*entry) > 1)
            --entry->mark;
        else
            *entry = {tag | 1, next};
    }
}

}  // namespace haversack
