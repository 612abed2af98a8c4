// The suffix automaton of a text: where the longest end of the text stood before.
#pragma once

#include <cstdint>
#include <vector>

namespace haversack {

// An automaton of all substrings of a text of tokens that grows. It takes the same memory from the
// start, for `most_tokens` tokens; a longer text loses its older half.
class Suffixes {
  public:
    explicit Suffixes(int32_t most_tokens);

    static int64_t num_bytes(int32_t most_tokens);

    void append(int32_t token);
    // The length of the longest end of the text that also ends earlier; 0: the last token is new.
    int32_t match_length() const { return match_length_; }
    // The token `idx` places after that earlier end. A text that repeats itself goes on so.
    int32_t continuation(int32_t idx) const;
    const std::vector<int32_t> &text() const { return text_; }

  private:
    // A set of substrings that end at the same places, and the longest of them.
    struct State {
        int32_t length, link, first_edge, latest_end;
    };
    struct Edge {
        int32_t state, token, target;
        int32_t next_of_state, next_in_bucket;
    };

    void clear();
    void extend(int32_t token);
    int32_t add_state(int32_t length, int32_t link, int32_t latest_end);
    int32_t split(int32_t state, int32_t from, int32_t token);
    void add_edge(int32_t state, int32_t token, int32_t target);
    Edge *find_edge(int32_t state, int32_t token);
    int32_t &bucket_of(int32_t state, int32_t token);

    const int32_t most_tokens_;
    std::vector<int32_t> text_, buckets_;
    std::vector<State> states_;
    std::vector<Edge> edges_;
    int32_t last_ = 0;  // the state of the whole text
    int32_t match_length_ = 0, match_end_ = 0;
};

}  // namespace haversack
