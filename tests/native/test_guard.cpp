// What becomes of an abort and of an exception of llama.cpp, here played by functions of the test.
#include "check.hpp"
#include "guard.hpp"
#include "team.hpp"

#include <cstring>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace haversack;

using AbortCallback = void (*)(const char *message);
extern "C" void haversack_guard_install(AbortCallback (*set_abort_callback)(AbortCallback));
extern "C" void haversack_guard_end_process(int exit_code);
extern "C" void haversack_guard_advise(const char *text);
extern "C" const char *haversack_guard_failure();

namespace {

constexpr int GAVE_UP = 7, ENDED = 3;

AbortCallback on_abort = nullptr;

// As ggml_abort does.
void give_up(const char *message) {
    on_abort(message);
    _exit(GAVE_UP);
}

void install() {
    haversack_guard_install([](AbortCallback callback) {
        on_abort = callback;
        return callback;
    });
}

// How a forked process ends that runs `function`, and what it writes to stderr.
template <typename Function>
int exit_code_of(Function function, std::string &written) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        function();
        _exit(0);
    }
    ::close(ends[1]);
    char text[512];
    for (ssize_t count; (count = read(ends[0], text, sizeof text)) > 0;)
        written.append(text, count);
    ::close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST(an_abort_in_a_guard_becomes_a_message) {
    install();
    for (int i = 0; i < 3; ++i) {
        const int result =
            guarded<int>(-5, [] { return give_up("/some/where/ggml.c:12: no\nmore"), 0; });
        CHECK(result == -5);
        CHECK(!std::strcmp(haversack_guard_failure(), "ggml.c:12: no"));
    }
    CHECK(guarded<int>(-5, [] { return 8; }) == 8);
    CHECK(!haversack_guard_failure());
}

TEST(an_exception_in_a_guard_becomes_a_message) {
    CHECK(guarded<int>(-1, []() -> int { throw std::runtime_error("no such tensor"); }) == -1);
    CHECK(!std::strcmp(haversack_guard_failure(), "no such tensor"));
    CHECK(guarded<int>(-1, []() -> int { throw 5; }) == -1);
    CHECK(!std::strcmp(haversack_guard_failure(), "an exception of an unknown kind"));
}

TEST(the_innermost_guard_catches) {
    install();
    const int outer = guarded<int>(-1, [] {
        const int inner = guarded<int>(-2, [] { return give_up("a.c:1: inner"), 0; });
        CHECK(inner == -2);
        return give_up("b.c:2: outer"), 0;
    });
    CHECK(outer == -1);
    CHECK(!std::strcmp(haversack_guard_failure(), "b.c:2: outer"));
}

TEST(threads_have_guards_and_messages_of_their_own) {
    install();
    const auto fail = [](const char *message) {
        for (int i = 0; i < 50; ++i) {
            guarded<int>(-1, [&] { return give_up(message), 0; });
            CHECK(!std::strcmp(haversack_guard_failure(), message));
        }
    };
    std::thread other(fail, "x.c:1: one");
    fail("y.c:2: two");
    other.join();
}

TEST(an_abort_outside_of_a_guard_ends_the_process_with_a_line) {
    install();
    std::string written;
    CHECK(exit_code_of([] { give_up("a.c:1: no"); }, written) == GAVE_UP);
    CHECK(written == "haversack: llama.cpp gave up: a.c:1: no\n");
    written.clear();
    CHECK(exit_code_of(
              [] {
                  haversack_guard_end_process(ENDED);
                  give_up("a.c:1: no");
              },
              written) == ENDED);
    CHECK(written == "haversack: llama.cpp gave up: a.c:1: no\n");
}

TEST(what_to_do_follows_the_reason) {
    install();
    std::string written;
    haversack_guard_advise("; look at the server");
    CHECK(exit_code_of([] { give_up("a.c:1: no"); }, written) == GAVE_UP);
    CHECK(written == "haversack: llama.cpp gave up: a.c:1: no; look at the server\n");
    guarded<int>(-1, [] { return give_up("x.c:1: one"), 0; });
    CHECK(!std::strcmp(haversack_guard_failure(), "x.c:1: one; look at the server"));
    haversack_guard_advise("");
}

// Other ranks would wait for ever for one that left by an exception.
TEST(an_abort_in_a_region_inside_a_guard_ends_the_process_with_a_line) {
    install();
    for (int num_threads : {1, 2}) {
        std::string written;
        CHECK(exit_code_of(
                  [num_threads] {
                      Team::own().set(num_threads, 0);
                      guarded<int>(-1, [] {
                          Team::own().run(
                              [](void *) {
                                  if (current_rank->number == 1) give_up("a.c:1: no");
                                  current_rank->team->barrier(*current_rank);
                              },
                              nullptr, 3);
                          return 0;
                      });
                  },
                  written) == GAVE_UP);
        CHECK(written == "haversack: llama.cpp gave up: a.c:1: no\n");
    }
}

// qsort knows nothing of exceptions, as an interpreter that calls back.
TEST(an_abort_below_code_of_others_ends_the_process_with_a_line) {
    install();
    std::string written;
    CHECK(exit_code_of(
              [] {
                  guarded<int>(-1, [] {
                      int numbers[] = {2, 1};
                      qsort(numbers, 2, sizeof *numbers,
                            [](const void *, const void *) { return give_up("a.c:1: no"), 0; });
                      return 0;
                  });
              },
              written) == GAVE_UP);
    CHECK(written == "haversack: llama.cpp gave up: a.c:1: no\n");
}

TEST(an_exception_that_nobody_catches_ends_the_process_with_a_line) {
    std::string written;
    CHECK(exit_code_of(
              [] {
                  haversack_guard_end_process(ENDED);
                  std::thread([] { throw std::runtime_error("lost"); }).join();
              },
              written) == ENDED);
    CHECK(written == "haversack: llama.cpp gave up: lost\n");
}
