// Moves experts up to a device while passes are computed, as fast as its link takes them.
#pragma once

#include "uploads.hpp"

namespace haversack {

class Promoter {
  public:
    // `reserve`: slots of a pool on the host that are left to a row.
    Promoter(DeviceTier &tier, const std::vector<Layer> &layers, std::vector<Pool> &pools,
             bool is_exclusive, int32_t reserve);

    // A pass has ended: take in what came, and begin with more unless the device has failed.
    void go_on();
    int32_t num_under_way(int32_t pool) const;
    // Return when nothing is under way: no slot is pinned for it any more.
    void withdraw();

  private:
    void take_in();
    bool start_more();
    void submit(int32_t pool, const Promotion &promotion);
    bool is_open(int32_t pool);

    DeviceTier &tier_;
    const std::vector<Layer> &layers_;
    std::vector<Pool> &pools_;
    const int32_t reserve_;
    std::vector<Promotions> promotions_;  // by pool
    // With their pools: promotions whose slot on the device is free now, because its expert has left.
    std::vector<std::pair<int32_t, Promotion>> freed_;
    std::vector<bool> was_full_;  // by pool
    size_t most_;                         // under way at once
    int32_t passes_to_rest_ = 0;
    Uploads uploads_;
};

}  // namespace haversack
