// Drafts of random texts of few tokens: the automaton stays within its memory, and the longest match
// is that of a naive search.
#include "check.hpp"
#include "drafter.hpp"

#include <algorithm>
#include <random>
#include <vector>

using namespace haversack;

namespace {

// The length of the longest end of the text from `first` on that also ends earlier there.
int32_t naive_match(const std::vector<int32_t> &text, size_t first) {
    int32_t longest = 0;
    for (size_t end = first; end + 1 < text.size(); ++end) {
        int32_t length = 0;
        while (length <= int32_t(end - first) && text[end - length] == text[text.size() - 1 - length])
            ++length;
        longest = std::max(longest, length);
    }
    return longest;
}

}  // namespace

TEST(the_longest_match_is_found) {
    for (int num_kinds = 1; num_kinds <= 4; ++num_kinds) {
        std::minstd_rand random(num_kinds);
        Suffixes suffixes(200);
        std::vector<int32_t> text;
        for (int i = 0; i < 200; ++i) {
            text.push_back(int32_t(random() % num_kinds));
            suffixes.append(text.back());
            CHECK(suffixes.match_length() == naive_match(text, 0));
        }
    }
}

TEST(a_text_longer_than_its_memory_is_matched_with_its_newer_part) {
    std::minstd_rand random(1);
    Suffixes suffixes(31);
    std::vector<int32_t> text;
    for (int i = 0; i < 500; ++i) {
        text.push_back(int32_t(random() % 3));
        suffixes.append(text.back());
        CHECK(suffixes.text().size() <= 31);
        CHECK(suffixes.match_length() == naive_match(text, text.size() - suffixes.text().size()));
        if (suffixes.match_length()) CHECK(suffixes.continuation(40) >= 0);
    }
}

TEST(drafts_are_within_the_text_and_the_table) {
    std::vector<Ngrams::Entry> entries(64);
    Rates rates{};
    Drafter drafter(16, 5, Ngrams(entries.data(), int64_t(entries.size())), &rates);
    std::minstd_rand random(1);
    for (int i = 0; i < 500; ++i) {
        const int32_t token = int32_t(random() % 8);
        drafter.append(&token, 1);
        int32_t tokens[6];
        double found[6];
        const int32_t count = drafter.propose(tokens, found, 6);
        for (int32_t idx = 0; idx < count; ++idx) CHECK(tokens[idx] >= 0 && tokens[idx] < 8);
        const double none = 7, any = 0;
        CHECK(!drafter.promises(&none, 1) && drafter.promises(&any, 1) == (count > 0));
        CHECK(std::all_of(found, found + count, [](double rate) { return rate >= 0 && rate <= 1; }));
    }
}
