#include "team.hpp"

#include "clock.hpp"

#include <algorithm>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace haversack {

thread_local Rank *current_rank = nullptr;

struct Team::Helper {
    Team *team;
    int number;  // 1 and up; the thread that owns the team has 0
    pthread_t thread;
    Signal begin;  // raised when there is a region to compute, or at the end
    std::atomic<int32_t> delay_file{-1};
};

namespace {

constexpr int LOOKS_PER_CLOCK = 32;  // reading the value takes 5 to 50 ns, the clock 25

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

long futex(std::atomic<uint32_t> *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

// Opens the file in which Linux counts how long this thread waited for a processor.
int open_delay_file() {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/self/task/%ld/schedstat", syscall(SYS_gettid));
    return open(path, O_RDONLY | O_CLOEXEC);
}

// Returns the second number of the file: nanoseconds.
double read_delay_s(int file) {
    char text[96];
    ssize_t length = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
    if (length <= 0) return -1;
    text[length] = 0;
    char *end;
    std::strtoull(text, &end, 10);
    return 1e-9 * static_cast<double>(std::strtoull(end, nullptr, 10));
}

struct Holder {
    std::unique_ptr<Team> team;
};
thread_local Holder holder;

// A forked process has none of the team's threads, so the team is left as it is.
void forget_after_fork() {
    static_cast<void>(holder.team.release());
    current_rank = nullptr;
}

// Run each rank to its next barrier, or to its end.
void go_on(std::vector<Rank> &ranks) {
    for (Rank &rank : ranks) {
        current_rank = &rank;
        rank.fiber->enter();
    }
}

}  // namespace

void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst) > 0) futex(&value_, FUTEX_WAKE, INT_MAX);
}

void Signal::await_change(uint32_t seen, double spin_s) {
    if (value() != seen) return;
    if (spin_s > 0) {
        const double end_s = now_s() + spin_s;
        do {
            for (int look = 0; look < LOOKS_PER_CLOCK; ++look) {
                pause_briefly();
                if (value() != seen) return;
            }
        } while (now_s() < end_s);
    }
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (value() == seen) futex(&value_, FUTEX_WAIT, seen);
    num_asleep_.fetch_sub(1, std::memory_order_relaxed);
}

Team &Team::own() {
    static const int once = pthread_atfork(nullptr, nullptr, forget_after_fork);
    static_cast<void>(once);
    if (!holder.team) {
        holder.team = std::make_unique<Team>();
        holder.team->delay_file_ = open_delay_file();
    }
    return *holder.team;
}

Team *Team::working() { return holder.team && holder.team->works_ ? holder.team.get() : nullptr; }

Team::~Team() {
    ends_ = true;
    for (auto &helper : helpers_) {
        helper->begin.raise();
        pthread_join(helper->thread, nullptr);
        if (helper->delay_file >= 0) close(helper->delay_file);
    }
    if (delay_file_ >= 0) close(delay_file_);
}

void Team::set(int num_threads, double spin_s) {
    works_ = true;
    max_threads_ = std::max(1, num_threads);
    spin_s_ = spin_s;
}

// Start threads until there are so many, or as many as the system grants.
void Team::grow(int num_threads) {
    while (static_cast<int>(helpers_.size()) + 1 < num_threads) {
        auto helper = std::make_unique<Helper>();
        helper->team = this;
        helper->number = static_cast<int>(helpers_.size()) + 1;
        sigset_t all, before;  // signals must go to the program's own threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        const int refused = pthread_create(&helper->thread, nullptr, help, helper.get());
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (refused) return;
        helpers_.push_back(std::move(helper));
    }
}

void *Team::help(void *argument) {
    Helper &helper = *static_cast<Helper *>(argument);
    pthread_setname_np(pthread_self(), "haversack-team");
    helper.delay_file = open_delay_file();
    for (uint32_t seen = 0;; ++seen) {
        helper.begin.await_change(seen, helper.team->spin_s_);
        if (helper.team->ends_) return nullptr;
        helper.team->compute(helper.number);
        helper.team->meet();
    }
}

void Team::run(void (*function)(void *), void *argument, int num_ranks) {
    const int wanted = std::min(max_threads_, num_ranks);
    if (wanted > 1) grow(wanted);
    num_threads_ = std::min(wanted, 1 + static_cast<int>(helpers_.size()));
    function_ = function, argument_ = argument, num_ranks_ = num_ranks;
    num_singles_.store(0, std::memory_order_relaxed);
    fibers_.resize(std::max<size_t>(fibers_.size(), num_ranks));
    for (int number = 1; number < num_threads_; ++number) helpers_[number - 1]->begin.raise();
    compute(0);
    meet();
}

// Compute the share of thread number `thread`: ranks `thread`, `thread + num_threads`, ... The
// first runs on the thread's own stack, because code that it calls back may check the stack's
// address.
void Team::compute(int thread) {
    Rank *outside = current_rank;
    std::vector<Rank> others = begin_others(thread);
    Rank first{this, thread, nullptr, &others};
    current_rank = &first;
    function_(argument_);
    go_on(others);
    current_rank = outside;
}

std::vector<Rank> Team::begin_others(int thread) {
    std::vector<Rank> others;
    for (int number = thread + num_threads_; number < num_ranks_; number += num_threads_) {
        if (!fibers_[number]) fibers_[number] = Fiber::make();
        if (!fibers_[number]) {
            std::fputs("haversack: no memory for a thread's stack: lower --threads\n", stderr);
            std::abort();
        }
        fibers_[number]->begin(function_, argument_);
        others.push_back({this, number, fibers_[number].get()});
    }
    return others;
}

void Team::barrier(Rank &rank) {
    if (rank.fiber) {
        rank.fiber->leave();
        return;
    }
    go_on(*rank.others);
    current_rank = &rank;
    meet();
}

bool Team::single(Rank &rank) {
    int expected = rank.num_singles++;
    return num_singles_.compare_exchange_strong(expected, expected + 1);
}

// Return when all threads of the region have called this.
void Team::meet() {
    // Read this before the thread is counted, because after that the next region may begin.
    const int num_threads = num_threads_;
    if (num_threads == 1) return;
    const uint32_t seen = met_.value();
    if (num_met_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
        num_met_.store(0, std::memory_order_relaxed);
        met_.raise();
    } else {
        met_.await_change(seen, spin_s_);
    }
}

double Team::delayed_s() {
    double sum_s = read_delay_s(delay_file_);
    for (auto &helper : helpers_)
        if (const double delay_s = read_delay_s(helper->delay_file); sum_s >= 0 && delay_s >= 0)
            sum_s += delay_s;
    return sum_s;
}

}  // namespace haversack
