// macOS's own; see system.hpp.
#include "system.hpp"

#include <pthread/qos.h>

namespace haversack {

bool make_pages(uint8_t *, int64_t) { return false; }

void prefer_huge_pages(void *, size_t) {}

void lower_priority() { pthread_set_qos_class_self_np(QOS_CLASS_BACKGROUND, 0); }

void watch_stack() {}
int64_t used_stack_bytes() { return 0; }

}  // namespace haversack
