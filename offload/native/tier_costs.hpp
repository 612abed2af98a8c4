// How long a device and the host take for experts of a row, and how many the device had better take:
// numbers only.
#pragma once

#include <cstdint>

namespace haversack {

class TierCosts {
  public:
    static constexpr int32_t MOST_EXPERTS = 64;  // of a row; of more all are left to the device

    // The device computed so many experts within `taken_s` since it began; the caller waited `waited_s`
    // of it for the end.
    void note_device(int32_t num_experts, double taken_s, double waited_s);
    // The host computed so many experts in `taken_s`.
    void note_host(int32_t num_experts, double taken_s);
    // How many of the `num_there` experts on the device to leave to it, at least `num_must`, when a row
    // uses `num_used`. Now and then all, so that times are measured anew.
    int32_t most_worth(int32_t num_used, int32_t num_there, int32_t num_must);

  private:
    double device_s(int32_t num_experts) const;

    double device_s_[MOST_EXPERTS + 1] = {};  // by number; 0: not known, or the host took longer
    double host_s_ = 0;                       // of one expert
    int64_t num_asked_ = 0;
};

}  // namespace haversack
