// How long a device and the host take for experts of a row, and how many of them the device should take:
// numbers only.
#pragma once

#include <cstdint>

namespace haversack {

// A time that is measured again and again.
struct MeasuredTime {
    double mean_s = 0;  // 0: not known
    int32_t num_noted = 0;
    void note(double taken_s);
};

class TierCosts {
  public:
    static constexpr int32_t MOST_EXPERTS = 64;  // of a row; of more all are left to the device

    // The device computed so many experts within `taken_s` since it began; the caller waited `waited_s`
    // of it for the end.
    void note_device(int32_t num_experts, double taken_s, double waited_s);
    // The host computed so many experts in `taken_s`.
    void note_host(int32_t num_experts, double taken_s);
    // How many of the `num_there` experts on the device to leave to it when a row uses `num_used`. The
    // host would have to read `num_lone` of them, `read_s` each: those are left to the device first, and
    // all of them unless that was slower for long. Now and then all are, so that times are measured anew.
    int32_t most_worth(int32_t num_used, int32_t num_there, int32_t num_lone, double read_s);
    // Whether the device was of use lately, so that more experts are worth their way to it.
    bool pays() const { return num_in_vain_ < MOST_IN_VAIN; }

  private:
    static constexpr int32_t MOST_IN_VAIN = 256;

    double device_s(int32_t num_experts) const;
    int32_t soonest(int32_t num_used, int32_t num_there, int32_t num_lone, double read_s) const;
    bool is_trial(int32_t num_there) const;

    MeasuredTime device_[MOST_EXPERTS + 1];  // by number; not known where the host took longer
    MeasuredTime host_;                      // of one expert
    int64_t num_asked_ = 0;
    int32_t num_in_vain_ = 0, num_too_slow_ = 0;
};

}  // namespace haversack
