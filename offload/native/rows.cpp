#include "rows.hpp"

#include <algorithm>

namespace haversack {

namespace {

Status compute_rows(Tensor *, Cpu &) { return FAILED; }

}  // namespace

bool depends_on_rows(const Tensor *) { return false; }

Status compute_nodes(Tensor *const *nodes, size_t count, Cpu &cpu) {
    Status status = SUCCESS;
    for (size_t i = 0; i < count && status == SUCCESS;) {
        if (depends_on_rows(nodes[i])) {
            status = compute_rows(nodes[i++], cpu);
            continue;
        }
        size_t end = i;
        while (end < count && end - i < Cpu::MOST_NODES && !depends_on_rows(nodes[end])) end++;
        status = cpu.compute(nodes + i, end - i);
        i = end;
    }
    return status;
}

}  // namespace haversack
