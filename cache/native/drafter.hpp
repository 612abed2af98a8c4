// Drafts how a text may go on, from what it and earlier texts said, and measures how often that is
// right.
#pragma once

#include "ngrams.hpp"
#include "suffixes.hpp"

#include <cstdint>

namespace haversack {

// How often tokens of a kind were right, and the outcomes that this counts for.
struct Rate {
    double share, num_outcomes;
};

// How often tokens were right, by where they came from: a rate for each kind of proposal. All
// drafters of a model share them.
struct Rates {
    static constexpr int NUM_MATCHES = 10;  // kinds of matches of the text's end, by their length
    static constexpr int NUM_COUNTS = 3;    // kinds of entries of a table, by their count

    Rate of_match[NUM_MATCHES];
    Rate of_ngram[Ngrams::NUM_ORDERS][NUM_COUNTS];
};

class Drafter {
  public:
    // The first `num_given` tokens of the text are a prompt: they are matched, but teach nothing.
    Drafter(int32_t most_tokens, int64_t num_given, Ngrams ngrams, Rates *rates);

    void append(const int32_t *tokens, int64_t count);
    // Put the next tokens, at most `most`, into `tokens`, and into `rates` how often such tokens
    // were right after a right one. Returns their number.
    int32_t propose(int32_t *tokens, double *rates, int32_t most) const;
    // Whether the chances to be kept of the first 1, 2, ... `most` tokens that would be proposed add
    // up to what one of `needs` says.
    bool promises(const double *needs, int32_t most) const;
    int64_t num_tokens() const { return num_tokens_; }  // of the text
    int32_t match_length() const { return suffixes_.match_length(); }

  private:
    void learn(int32_t token);

    Suffixes suffixes_;
    const int64_t num_given_;
    Ngrams ngrams_;
    Rates *const rates_;
    int64_t num_tokens_ = 0;
};

// Reads a text that goes on without Python, up to a place where a draft may pay.
struct Watch {
    static constexpr int32_t MOST = 16;

    Drafter *drafter;
    const double *needs;  // as of Drafter::promises
    int32_t most;         // of them, up to MOST
};

}  // namespace haversack
