// Tests without a framework: TEST(name) { CHECK(condition); }. `main` is in check.cpp: it runs all
// tests of the program, or those that its arguments name.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace check {

struct Test {
    Test(const char *name, void (*run)());
    const char *name;
    void (*run)();
    Test *next = nullptr;
};

}  // namespace check

#define TEST(name)                                      \
    static void name();                                 \
    static const check::Test name##_test(#name, &name); \
    static void name()

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (condition) break;                                                        \
        std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        std::abort();                                                                \
    } while (0)
