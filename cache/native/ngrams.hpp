// Which token followed the last few, in all texts of a model: a table that keeps its size.
#pragma once

#include <cstdint>

namespace haversack {

// A table in memory of the caller's, which begins as zeros and may be kept in a file.
class Ngrams {
  public:
    static constexpr int NUM_ORDERS = 3;
    static constexpr int ORDERS[NUM_ORDERS] = {1, 2, 4};  // how many tokens stand before
    static constexpr int MOST_BEFORE = ORDERS[NUM_ORDERS - 1];

    // A context, by its hash, and what followed it. The low bits of `mark` count how often that was
    // so; 0: the entry is free.
    struct Entry {
        uint32_t mark;
        int32_t next;
    };
    struct Found {
        int order;  // its place in ORDERS; -1: no context is known
        int count;
        int32_t next;
    };

    Ngrams(Entry *entries, int64_t num_entries);

    // `before` is the end of a text, `num_before` tokens long. The longest context that is known
    // decides.
    Found find(const int32_t *before, int num_before) const;
    void learn(const int32_t *before, int num_before, int32_t next);

  private:
    struct Place {
        Entry *set;
        uint32_t tag;
    };
    Place place_of(const int32_t *before, int num_before, int order) const;

    Entry *const entries_;
    const uint64_t num_sets_;
};

}  // namespace haversack
