// What cache/_native.py calls.
#include "drafter.hpp"

using namespace haversack;

#define API extern "C" __attribute__((visibility("default")))

API int64_t haversack_suffixes_bytes(int32_t most_tokens) { return Suffixes::num_bytes(most_tokens); }

API Drafter *haversack_drafter_new(int32_t most_tokens, int64_t num_given, Ngrams::Entry *entries,
                                   int64_t num_entries, Rates *rates) {
    return new Drafter(most_tokens, num_given, Ngrams(entries, num_entries), rates);
}
API int32_t haversack_drafter_propose(Drafter *drafter, const int32_t *appended, int64_t num_appended,
                                      int32_t *tokens, double *rates, int32_t most) {
    drafter->append(appended, num_appended);
    return drafter->propose(tokens, rates, most);
}
// Steps::stops of devices/native/pass.hpp
API bool haversack_drafter_stops(Watch *watch, int32_t token) {
    watch->drafter->append(&token, 1);
    return watch->drafter->promises(watch->needs, watch->most);
}
API int64_t haversack_drafter_num_tokens(const Drafter *drafter) { return drafter->num_tokens(); }
API int32_t haversack_drafter_match_length(const Drafter *drafter) { return drafter->match_length(); }
API void haversack_drafter_delete(Drafter *drafter) { delete drafter; }
