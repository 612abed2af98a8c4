// Seconds, from a moment that is the same for the whole process.
#pragma once

#include <chrono>

namespace haversack {

inline double now_s() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Adds the time of its life to `sum`.
class Stopwatch {
  public:
    explicit Stopwatch(double &sum) : sum_(sum), began_s_(now_s()) {}
    ~Stopwatch() { sum_ += now_s() - began_s_; }
    Stopwatch(const Stopwatch &) = delete;

  private:
    double &sum_;
    const double began_s_;
};

}  // namespace haversack
