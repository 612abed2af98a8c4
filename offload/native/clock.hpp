#pragma once

#include "readers.hpp"

namespace haversack {

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
