// How long a device and the host take for experts of a batch, and how many of the host's are worth their
// way to the device: numbers only.
#pragma once

#include <cstdint>
#include <vector>

#include "tier_costs.hpp"

namespace haversack {

// What is there for a layer of a batch.
struct BatchShare {
    std::vector<int32_t> rows;  // how many each expert has that may be copied, the most first
    int64_t host_work;          // what the host has to do if no expert is copied
    int64_t pairs_there;        // pairs whose experts lie on the device
    int64_t expert_bytes;
};

class BatchCosts {
  public:
    // The host's work with an expert of so many rows. To read its weights takes about as long as a few
    // rows.
    static int64_t work(int64_t num_rows) { return num_rows + ROWS_OF_READING; }

    // So many bytes were copied to the device.
    void note_copy(int64_t num_bytes, double taken_s) { copy_.note(taken_s / num_bytes); }
    // The device computed so many pairs.
    void note_device(int64_t num_pairs, double taken_s) { pair_.note(taken_s / num_pairs); }
    // The host did so much work, while experts were copied, or alone.
    void note_host(int64_t work, bool is_alone, double taken_s);
    // How many experts, from the first on, to copy and compute on the device, so that both are done soon.
    // Now and then one or none, so that times are measured anew.
    int32_t most_worth(const BatchShare &share);

  private:
    static constexpr int64_t ROWS_OF_READING = 8;

    int32_t least_time(const BatchShare &share) const;

    MeasuredTime copy_, pair_;          // of a byte; of a pair there
    MeasuredTime alone_, beside_;       // of the host's work, alone and while experts are copied
    int64_t num_asked_ = 0;
};

}  // namespace haversack
