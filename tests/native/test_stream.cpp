// Work in order on a stream, beside the clock of what is simulated.
#include "check.hpp"
#include "clock.hpp"
#include "stream.hpp"

#include <limits>
#include <vector>

using namespace haversack;

namespace {

constexpr double AT_ONCE = std::numeric_limits<double>::infinity();

}  // namespace

TEST(work_is_done_in_order) {
    Pace pace(AT_ONCE, 0);
    std::vector<int> done;
    Stream stream;
    for (int i = 0; i < 1000; ++i) stream.add([&, i] { done.push_back(i); }, pace, 1, i % 3 == 0);
    stream.synchronize();
    CHECK(done.size() == 1000);
    for (int i = 0; i < 1000; ++i) CHECK(done[i] == i);
}

TEST(a_stream_that_ends_has_done_its_work) {
    Pace pace(AT_ONCE, 0);
    int done = 0;
    {
        Stream stream;
        for (int i = 0; i < 100; ++i) stream.add([&] { ++done; }, pace, 1, false);
    }
    CHECK(done == 100);
}

TEST(short_work_of_an_idle_stream_is_done_by_the_caller) {
    Pace pace(AT_ONCE, 0);
    std::thread::id by;
    Stream stream;
    stream.add([&] { by = std::this_thread::get_id(); }, pace, 1, true);
    CHECK(by == std::this_thread::get_id());
}

TEST(a_caller_waits_for_the_clock) {
    Pace link(1e6, 0.001), processor(AT_ONCE, 0.001);
    const double began_s = now_s();
    Stream stream;
    stream.add([] {}, link, 2000, true);         // 2 ms, and 1 ms until it is there
    stream.add([] {}, processor, 1 << 30, true);  // 1 ms
    stream.synchronize();
    CHECK(now_s() - began_s >= 0.004);
}

TEST(two_streams_share_a_link) {
    Pace link(1e6, 0);
    const double began_s = now_s();
    Stream one, other;
    one.add([] {}, link, 2000, false);
    other.add([] {}, link, 2000, false);
    other.synchronize();
    one.synchronize();
    CHECK(now_s() - began_s >= 0.004);
}

TEST(a_stream_begins_after_a_moment_of_another) {
    for (int round = 0; round < 100; ++round) {
        Pace pace(AT_ONCE, 0);
        int bytes = 0, seen = 0;
        Stream copies, computing;
        copies.add([&] { bytes = round + 1; }, pace, 1, false);
        computing.begin_after(copies.now());
        computing.add([&] { seen = bytes; }, pace, 1, false);
        computing.synchronize();
        CHECK(seen == round + 1);
    }
}

TEST(a_moment_outlives_its_stream) {
    Pace pace(AT_ONCE, 0);
    int done = 0;
    Stream::Moment moment;
    {
        Stream stream;
        stream.add([&] { ++done; }, pace, 1, false);
        moment = stream.now();
    }
    moment.wait();
    CHECK(done == 1);
}
