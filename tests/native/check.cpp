#include "check.hpp"

#include <cstring>
#include <unistd.h>

namespace check {

namespace {

constexpr unsigned HANGS_AFTER_S = 300;  // a test takes a few seconds, also on a slow computer

Test *first = nullptr, **last = &first;

bool is_named(const char *name, int count, char **names) {
    for (int i = 0; i < count; ++i)
        if (!std::strcmp(name, names[i])) return true;
    return count == 0;
}

}  // namespace

Test::Test(const char *given, void (*function)()) : name(given), run(function) {
    *last = this;
    last = &next;
}

}  // namespace check

// A forked process may start threads: those of the test are not in it.
extern "C" const char *__tsan_default_options() { return "die_after_fork=0"; }

int main(int count, char **arguments) {
    for (check::Test *test = check::first; test; test = test->next) {
        if (!check::is_named(test->name, count - 1, arguments + 1)) continue;
        std::fprintf(stderr, "%s\n", test->name);
        alarm(check::HANGS_AFTER_S);
        test->run();
    }
}
