#include "suffixes.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr int32_t NONE = -1, ROOT = 0;
// How many ends of the text are noted as having ended here last, the longest first. All of them may
// be as many as the text is long. The others keep an older place, where they ended too.
constexpr int MOST_NOTED = 8;

size_t num_buckets(int32_t most_tokens) {
    size_t number = 64;
    while (number < 2 * size_t(most_tokens)) number *= 2;
    return number;
}

}  // namespace

Suffixes::Suffixes(int32_t most_tokens)
    : most_tokens_(std::max(2, most_tokens)), buckets_(num_buckets(most_tokens_)) {
    // An automaton of n tokens has at most 2n states and 3n edges.
    text_.reserve(most_tokens_);
    states_.reserve(2 * size_t(most_tokens_));
    edges_.reserve(3 * size_t(most_tokens_));
    clear();
}

int64_t Suffixes::num_bytes(int32_t most_tokens) {
    const int64_t token_bytes = sizeof(int32_t) + 2 * sizeof(State) + 3 * sizeof(Edge);
    return most_tokens * token_bytes + num_buckets(most_tokens) * sizeof(int32_t);
}

void Suffixes::clear() {
    text_.clear();
    states_.clear();
    edges_.clear();
    std::fill(buckets_.begin(), buckets_.end(), NONE);
    last_ = add_state(0, NONE, NONE);
    match_length_ = 0;
}

void Suffixes::append(int32_t token) {
    if (int32_t(text_.size()) == most_tokens_) {
        const std::vector<int32_t> newer(text_.begin() + most_tokens_ / 2, text_.end());
        clear();
        for (int32_t each : newer) extend(each);
    }
    extend(token);
}

void Suffixes::extend(int32_t token) {
    const int32_t end = int32_t(text_.size());
    text_.push_back(token);
    const int32_t added = add_state(states_[last_].length + 1, ROOT, end);
    int32_t state = last_;
    Edge *edge = nullptr;
    while (state != NONE && !(edge = find_edge(state, token))) {
        add_edge(state, token, added);
        state = states_[state].link;
    }
    if (state != NONE) {
        const bool is_whole = states_[edge->target].length == states_[state].length + 1;
        states_[added].link = is_whole ? edge->target : split(edge->target, state, token);
    }
    last_ = added;

    int32_t ended = states_[added].link;
    match_length_ = states_[ended].length;
    match_end_ = states_[ended].latest_end;
    for (int i = 0; i < MOST_NOTED && ended != ROOT; ++i) {
        states_[ended].latest_end = end;
        ended = states_[ended].link;
    }
}

int32_t Suffixes::continuation(int32_t idx) const {
    const int32_t first = match_end_ + 1;
    return text_[first + idx % (int32_t(text_.size()) - first)];
}

int32_t Suffixes::add_state(int32_t length, int32_t link, int32_t latest_end) {
    states_.push_back({length, link, NONE, latest_end});
    return int32_t(states_.size()) - 1;
}

// The shorter substrings of `state`, those that are reached from `from` by `token`, get a state of
// their own, because they have ended where the longer ones have not.
int32_t Suffixes::split(int32_t state, int32_t from, int32_t token) {
    const State whole = states_[state];
    const int32_t part = add_state(states_[from].length + 1, whole.link, whole.latest_end);
    for (int32_t at = whole.first_edge; at != NONE; at = edges_[at].next_of_state)
        add_edge(part, edges_[at].token, edges_[at].target);
    states_[state].link = part;
    for (; from != NONE; from = states_[from].link) {
        Edge *edge = find_edge(from, token);
        if (edge->target != state) break;
        edge->target = part;
    }
    return part;
}

void Suffixes::add_edge(int32_t state, int32_t token, int32_t target) {
    int32_t &bucket = bucket_of(state, token);
    const int32_t added = int32_t(edges_.size());
    edges_.push_back({state, token, target, states_[state].first_edge, bucket});
    states_[state].first_edge = bucket = added;
}

Suffixes::Edge *Suffixes::find_edge(int32_t state, int32_t token) {
    for (int32_t at = bucket_of(state, token); at != NONE; at = edges_[at].next_in_bucket)
        if (edges_[at].state == state && edges_[at].token == token) return &edges_[at];
    return nullptr;
}

int32_t &Suffixes::bucket_of(int32_t state, int32_t token) {
    uint64_t mixed = (uint64_t(uint32_t(state)) << 32 | uint32_t(token)) * 0x9E3779B97F4A7C15ull;
    return buckets_[(mixed >> 32) & (buckets_.size() - 1)];
}

}  // namespace haversack
