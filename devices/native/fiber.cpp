#include "fiber.hpp"

#include <cstdint>
#include <cstring>
#include <sys/mman.h>

namespace haversack {

namespace {

constexpr size_t STACK_BYTES = 2 * 1024 * 1024, GUARD_BYTES = 64 * 1024;

thread_local Fiber *entered = nullptr;  // the fiber that `Fiber::main` begins

}  // namespace

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

// void haversack_switch_stack(void **left, void *entered): push the registers that a call must not
// change onto this stack, store their address in `*left`, and load those that lie at `entered`.
extern "C" void haversack_switch_stack(void **left, void *entered)
    __attribute__((visibility("hidden")));

#if defined(__x86_64__)
constexpr size_t NUM_SAVED = 6, RETURN_ADDRESS = 6;  // in words from the stack's end
asm(R"(
.text
.hidden haversack_switch_stack
.globl haversack_switch_stack
.type haversack_switch_stack, @function
haversack_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size haversack_switch_stack, . - haversack_switch_stack
)");
#else
constexpr size_t NUM_SAVED = 20, RETURN_ADDRESS = 11;
asm(R"(
.text
.hidden haversack_switch_stack
.globl haversack_switch_stack
.type haversack_switch_stack, %function
haversack_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size haversack_switch_stack, . - haversack_switch_stack
)");
#endif

std::unique_ptr<Fiber> Fiber::make() {
    void *mapping = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    mprotect(mapping, GUARD_BYTES, PROT_NONE);
    madvise(mapping, GUARD_BYTES + STACK_BYTES, MADV_NOHUGEPAGE);
    return std::unique_ptr<Fiber>(new Fiber(mapping));
}

Fiber::~Fiber() { munmap(mapping_, GUARD_BYTES + STACK_BYTES); }

void Fiber::begin(void (*function)(void *), void *argument) {
    watch_.begin(static_cast<char *>(mapping_) + GUARD_BYTES, STACK_BYTES);
    function_ = function, argument_ = argument;
    // The words that the first switch loads. They lie below a word in place of the return address,
    // so that the stack is aligned as after a call.
    auto *end = reinterpret_cast<uintptr_t *>(static_cast<char *>(mapping_) + GUARD_BYTES +
                                              STACK_BYTES);
    constexpr size_t NUM_WORDS = NUM_SAVED + (NUM_SAVED == RETURN_ADDRESS ? 2 : 0);
    uintptr_t *words = end - NUM_WORDS;
    std::memset(words, 0, NUM_WORDS * sizeof *words);
    words[RETURN_ADDRESS] = reinterpret_cast<uintptr_t>(&Fiber::main);
    stack_ = words;
}

void Fiber::enter() {
    entered = this;
    watch_.before_entering();
    haversack_switch_stack(&thread_stack_, stack_);
    watch_.after_leaving();
}

void Fiber::leave() {
    watch_.before_leaving();
    haversack_switch_stack(&stack_, thread_stack_);
    watch_.after_entering();
}

#else

std::unique_ptr<Fiber> Fiber::make() { return nullptr; }
Fiber::~Fiber() = default;
void Fiber::begin(void (*)(void *), void *) {}
void Fiber::enter() {}
void Fiber::leave() {}

#endif

void Fiber::main() {
    Fiber *fiber = entered;
    fiber->watch_.after_entering();
    fiber->function_(fiber->argument_);
    fiber->leave();
    __builtin_unreachable();  // `begin` replaces a fiber that has returned
}

}  // namespace haversack
