// Texts on threads of their own, through tokenizers that the test plays.
#include "check.hpp"
#include "faults.hpp"
#include "guard.hpp"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <thread>

using Tokenize = int32_t (*)(const void *vocab, const char *text, int32_t length, int32_t *tokens,
                             int32_t room, bool add_special, bool parse_special);
struct Tokenizing;
extern "C" {
Tokenizing *haversack_tokenizing_start(Tokenize function, const void *vocab, const char *text,
                                       int64_t length, int64_t stack_bytes, int32_t *error);
bool haversack_tokenizing_wait(Tokenizing *work, double timeout_s);
int64_t haversack_tokenizing_tokens(Tokenizing *work, int32_t **tokens, const char **failure,
                                    int64_t *stack_bytes);
void haversack_tokenizing_let_go(Tokenizing *work);
void haversack_longest_runs(const char *text, int64_t length, int64_t *longest);
}

namespace {

constexpr int64_t STACK_BYTES = 4 << 20;
constexpr double GENEROUS_S = 200;

// Three tokens a byte.
int32_t in_threes(const void *, const char *text, int32_t length, int32_t *tokens, int32_t room,
                  bool, bool) {
    if (room < 3 * length) return -3 * length;
    for (int32_t i = 0; i < 3 * length; ++i) tokens[i] = text[i / 3];
    return 3 * length;
}

std::atomic<bool> may_go_on{false};
int32_t slowly(const void *vocab, const char *text, int32_t length, int32_t *tokens, int32_t room,
               bool first, bool second) {
    while (!may_go_on) std::this_thread::yield();
    return in_threes(vocab, text, length, tokens, room, first, second);
}

int32_t never(const void *, const char *, int32_t, int32_t *, int32_t, bool, bool) {
    throw std::runtime_error("a text it cannot take");
}

// Uses `*vocab` bytes of its stack.
int32_t deeply(const void *vocab, const char *, int32_t, int32_t *, int32_t, bool, bool) {
    volatile char used[1 << 14];
    for (size_t i = 0; i < sizeof used; i += 1024) used[i] = 1;
    const int64_t left = *static_cast<const int64_t *>(vocab) - int64_t(sizeof used);
    return (left > 0 ? deeply(&left, nullptr, 0, nullptr, 0, false, false) : 0) + 0 * used[0];
}

Tokenizing *start(Tokenize function, const std::string &text, const void *vocab = nullptr) {
    int32_t error = -1;
    Tokenizing *work =
        haversack_tokenizing_start(function, vocab, text.data(), text.size(), STACK_BYTES, &error);
    CHECK(work && error == 0);
    return work;
}

struct Outcome {
    int64_t count, stack_bytes;
    int32_t *tokens;
    const char *failure;
};

Outcome outcome_of(Tokenizing *work) {
    CHECK(haversack_tokenizing_wait(work, GENEROUS_S));
    Outcome outcome{};
    outcome.count =
        haversack_tokenizing_tokens(work, &outcome.tokens, &outcome.failure, &outcome.stack_bytes);
    return outcome;
}

}  // namespace

TEST(more_tokens_than_bytes_are_given_whole) {
    for (size_t length : {0, 1, 7, 100'000}) {
        Tokenizing *work = start(in_threes, std::string(length, 'x'));
        const Outcome outcome = outcome_of(work);
        CHECK(outcome.count == int64_t(3 * length));
        for (int64_t i = 0; i < outcome.count; ++i) CHECK(outcome.tokens[i] == 'x');
        haversack_tokenizing_let_go(work);
    }
}

TEST(what_a_tokenizer_throws_is_told) {
    Tokenizing *work = start(never, "text");
    const Outcome outcome = outcome_of(work);
    CHECK(outcome.count == -1 && !std::strcmp(outcome.failure, "a text it cannot take"));
    haversack_tokenizing_let_go(work);
}

TEST(its_caller_may_leave_first_or_last) {
    may_go_on = false;
    Tokenizing *left = start(slowly, "text"), *awaited = start(slowly, "text");
    CHECK(!haversack_tokenizing_wait(left, 0));
    haversack_tokenizing_let_go(left);
    may_go_on = true;
    CHECK(outcome_of(awaited).count == 12);
    haversack_tokenizing_let_go(awaited);
}

TEST(a_thread_that_is_refused_is_an_error) {
    faults::num_threads_left = 0;
    int32_t error = 0;
    CHECK(!haversack_tokenizing_start(in_threes, nullptr, "text", 4, STACK_BYTES, &error));
    CHECK(error == EAGAIN);
    faults::num_threads_left = -1;
    CHECK(!haversack_tokenizing_start(in_threes, nullptr, "text", 4, 1, &error));
    CHECK(error == EINVAL);  // less than any stack has
}

#ifdef __linux__
TEST(the_stack_that_was_used_is_told) {
    const int64_t used_bytes = 2 << 20;
    Tokenizing *work = start(deeply, "text", &used_bytes);
    const Outcome outcome = outcome_of(work);
    CHECK(outcome.stack_bytes >= used_bytes && outcome.stack_bytes <= STACK_BYTES + (1 << 16));
    haversack_tokenizing_let_go(work);
}
#endif

TEST(runs_are_counted_in_characters) {
    int64_t longest[3];
    const std::string text = "ab cd, \xC3\xA4\xC3\xB6\xC3\xBC! \n12";
    haversack_longest_runs(text.data(), text.size(), longest);
    CHECK(longest[0] == 5 && longest[1] == 3 && longest[2] == 8);
    haversack_longest_runs(nullptr, 0, longest);
    CHECK(longest[0] == 0 && longest[1] == 0 && longest[2] == 0);
}
