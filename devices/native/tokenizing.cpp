// Tokenizing on a thread with a large enough stack. The regular expressions of some vocabularies
// take hundreds of bytes of stack for each character of a match, and a match may be a whole text.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "guard.hpp"
#include "system.hpp"

#define API extern "C" __attribute__((visibility("default")))

namespace haversack {
namespace {

constexpr int64_t SMALL_TOKENS = 16;

// int32_t llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special)
using Tokenize = int32_t (*)(const void *vocab, const char *text, int32_t length, int32_t *tokens,
                             int32_t room, bool add_special, bool parse_special);

// Returns the tokens of `text`, or in `failure` why llama.cpp gave up.
void tokenize(Tokenize function, const void *vocab, const std::string &text,
              std::vector<int32_t> &tokens, std::string &failure) {
    try {
        tokens.resize(text.size() + SMALL_TOKENS);
    } catch (const std::bad_alloc &) {
        failure = "there is no memory for its tokens";
        return;
    }
    const auto call = [&] {
        return function(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                        static_cast<int32_t>(tokens.size()), false, true);
    };
    const int32_t count = guarded<int32_t>(-1, [&] {
        int32_t found = call();
        if (found < 0) {  // a character may give more tokens than it has bytes
            tokens.resize(static_cast<size_t>(-static_cast<int64_t>(found)));
            found = call();
        }
        return found;
    });
    tokens.resize(count < 0 ? 0 : static_cast<size_t>(count));
    if (count < 0) {
        failure = last_failure();
    }
}

}  // namespace

// One text that is being tokenized. Its thread and its caller hold it; the last one to let go
// deletes it.
struct Tokenizing {
    Tokenize function;
    const void *vocab;
    std::string text, failure;
    std::vector<int32_t> tokens;
    int64_t stack_bytes_used = 0;
    std::mutex mutex{};
    std::condition_variable ended{};
    bool has_ended = false;
    std::atomic<int> holders{2};

    void let_go() {
        if (--holders == 0) {
            delete this;
        }
    }
    void run() {
        watch_stack();
        tokenize(function, vocab, text, tokens, failure);
        stack_bytes_used = used_stack_bytes();
        {
            std::lock_guard<std::mutex> lock(mutex);
            has_ended = true;
        }
        ended.notify_all();
        let_go();
    }
};

}  // namespace haversack

using namespace haversack;

// llama_tokenize on this thread, guarded.
API int32_t haversack_tokenize_here(Tokenize function, const void *vocab, const char *text,
                                    int32_t length, int32_t *tokens, int32_t room) {
    return guarded<int32_t>(
        -1, [&] { return function(vocab, text, length, tokens, room, false, true); });
}
// Returns null and sets `error` if no such thread can be started.
API Tokenizing *haversack_tokenizing_start(Tokenize function, const void *vocab, const char *text,
                                           int64_t length, int64_t stack_bytes, int32_t *error) {
    Tokenizing *work;
    try {
        work = new Tokenizing{function, vocab, {text, static_cast<size_t>(length)}, {}, {}};
    } catch (const std::bad_alloc &) {
        *error = ENOMEM;
        return nullptr;
    }
    *error = start_thread(
        stack_bytes, [](void *data) { static_cast<Tokenizing *>(data)->run(); }, work);
    if (*error != 0) {
        delete work;
        return nullptr;
    }
    return work;
}
// Waits at most `timeout_s`. Returns whether the work has ended.
API bool haversack_tokenizing_wait(Tokenizing *work, double timeout_s) {
    std::unique_lock<std::mutex> lock(work->mutex);
    return work->ended.wait_for(lock, std::chrono::duration<double>(timeout_s),
                                [work] { return work->has_ended; });
}
// Returns how many tokens there are, and where, once the work has ended; -1 if llama.cpp gave up.
API int64_t haversack_tokenizing_tokens(Tokenizing *work, int32_t **tokens, const char **failure,
                                        int64_t *stack_bytes) {
    *tokens = work->tokens.data(), *failure = work->failure.c_str();
    *stack_bytes = work->stack_bytes_used;
    return work->failure.empty() ? static_cast<int64_t>(work->tokens.size()) : -1;
}
API void haversack_tokenizing_let_go(Tokenizing *work) { work->let_go(); }

// Returns the bytes of the longest token's text, with special tokens written out.
API int32_t haversack_longest_piece(int32_t (*piece)(const void *, int32_t, char *, int32_t,
                                                     int32_t, bool),
                                    const void *vocab, int32_t num_tokens) {
    char none[1];
    int32_t longest = 0;
    for (int32_t token = 0; token < num_tokens; ++token) {
        const int32_t length = guarded<int32_t>(  // negative where there is no room for it
            0, [&] { return piece(vocab, token, none, 0, 0, true); });
        longest = -length > longest ? -length : longest;
    }
    return longest;
}

// Returns the lengths in characters of the longest runs that a regular expression of llama.cpp may
// match at once. Each kind of run has its set of characters: words with the blanks between them;
// words, numbers and symbols without blanks; all but letters and digits. Characters beyond ASCII
// are in all sets, because they may be anything.
API void haversack_longest_runs(const char *text, int64_t length, int64_t *longest) {
    enum { PHRASE, WORD, OTHER, NUM_SETS };
    int64_t run[NUM_SETS] = {0, 0, 0};
    longest[PHRASE] = longest[WORD] = longest[OTHER] = 0;
    for (int64_t i = 0; i < length; ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if ((byte & 0xC0) == 0x80) {
            continue;  // the rest of a character
        }
        const bool ascii = byte < 0x80;
        const bool ends_sentence = byte == '.' || byte == ',' || byte == '!' || byte == '?';
        const bool breaks_line = byte == '\n' || byte == '\r';
        const bool blank = breaks_line || byte == ' ' || (byte >= '\t' && byte <= '\f');
        const bool alphanumeric = (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
                                  (byte >= 'a' && byte <= 'z');
        const bool belongs[NUM_SETS] = {!ends_sentence && !breaks_line, !ends_sentence && !blank,
                                        !ascii || !alphanumeric};
        for (int set = 0; set < NUM_SETS; ++set) {
            run[set] = belongs[set] ? run[set] + 1 : 0;
            longest[set] = run[set] > longest[set] ? run[set] : longest[set];
        }
    }
}
