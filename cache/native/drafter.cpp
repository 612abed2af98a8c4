#include "drafter.hpp"

#include <algorithm>

namespace haversack {

namespace {

constexpr double MOST_OUTCOMES = 32;  // that a rate goes back

Rate &rate_of_match(Rates &rates, int32_t length) {
    constexpr int32_t LEAST[Rates::NUM_MATCHES] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 32};
    int kind = Rates::NUM_MATCHES - 1;
    while (LEAST[kind] > length) --kind;
    return rates.of_match[kind];
}

Rate &rate_of_ngram(Rates &rates, const Ngrams::Found &found) {
    return rates.of_ngram[found.order][found.count >= 4 ? 2 : found.count >= 2 ? 1 : 0];
}

void note(Rate &rate, bool is_right) {
    rate.num_outcomes = std::min(rate.num_outcomes + 1, MOST_OUTCOMES);
    rate.share += (double(is_right) - rate.share) / rate.num_outcomes;
}

}  // namespace

Drafter::Drafter(int32_t most_tokens, int64_t num_given, Ngrams ngrams, Rates *rates)
    : suffixes_(most_tokens), num_given_(num_given), ngrams_(ngrams), rates_(rates) {}

void Drafter::append(const int32_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i, ++num_tokens_) {
        if (num_tokens_ >= num_given_) learn(tokens[i]);
        suffixes_.append(tokens[i]);
    }
}

// Note whether `token` is what would have been proposed.
void Drafter::learn(int32_t token) {
    const int32_t length = suffixes_.match_length();
    if (length) note(rate_of_match(*rates_, length), suffixes_.continuation(0) == token);
    const std::vector<int32_t> &text = suffixes_.text();
    const int num_before = int(std::min<size_t>(text.size(), Ngrams::MOST_BEFORE));
    const int32_t *before = text.data() + text.size() - num_before;
    const Ngrams::Found found = ngrams_.find(before, num_before);
    if (found.count) note(rate_of_ngram(*rates_, found), found.next == token);
    ngrams_.learn(before, num_before, token);
}

int32_t Drafter::propose(int32_t *tokens, double *rates, int32_t most) const {
    const std::vector<int32_t> &text = suffixes_.text();
    const int num_before = int(std::min<size_t>(text.size(), Ngrams::MOST_BEFORE));
    std::vector<int32_t> line(text.end() - num_before, text.end());
    int32_t matched = suffixes_.match_length();  // 0: the draft has left the match
    for (int32_t idx = 0; idx < most; ++idx) {
        const int32_t *before = line.data() + line.size() - num_before;
        const Ngrams::Found found = ngrams_.find(before, num_before);
        const double of_ngram = found.count ? rate_of_ngram(*rates_, found).share : 0;
        const double of_match = matched ? rate_of_match(*rates_, matched).share : 0;
        if (!found.count && !matched) return idx;
        const int32_t matching = matched ? suffixes_.continuation(idx) : 0;
        const bool follows = of_match >= of_ngram;
        tokens[idx] = follows ? matching : found.next;
        rates[idx] = std::max(of_match, of_ngram);
        matched = matched && tokens[idx] == matching ? matched + 1 : 0;
        line.push_back(tokens[idx]);
    }
    return most;
}

bool Drafter::promises(const double *needs, int32_t most) const {
    int32_t tokens[Watch::MOST];
    double rates[Watch::MOST], chance = 1, sum = 0;
    const int32_t found = propose(tokens, rates, std::min(most, Watch::MOST));
    for (int32_t idx = 0; idx < found; ++idx) {
        chance *= rates[idx];
        sum += chance;
        if (sum >= needs[idx]) return true;
    }
    return false;
}

}  // namespace haversack
