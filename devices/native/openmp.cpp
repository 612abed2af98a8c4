#include "openmp.hpp"

#include "team.hpp"

#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

namespace haversack {

namespace {

// OpenMP's own functions, as GCC calls them; used outside of our regions.
struct OpenMp {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    void (*barrier)();
    bool (*single_start)();
    int (*thread_number)();
    int (*num_threads)();
} openmp;

void parallel(void (*function)(void *), void *argument, unsigned num_ranks, unsigned flags) {
    Team *team = Team::working();
    Rank *outside = current_rank;
    if (team && !outside && num_ranks > 1) {
        team->run(function, argument, static_cast<int>(num_ranks));
    } else {  // OpenMP computes regions within regions too
        current_rank = nullptr;
        openmp.parallel(function, argument, num_ranks, flags);
        current_rank = outside;
    }
}

void barrier() {
    if (Rank *rank = current_rank)
        rank->team->barrier(*rank);
    else
        openmp.barrier();
}

bool single_start() {
    Rank *rank = current_rank;
    return rank ? rank->team->single(*rank) : openmp.single_start();
}

int thread_number() {
    const Rank *rank = current_rank;
    return rank ? rank->number : openmp.thread_number();
}

int num_threads() {
    const Rank *rank = current_rank;
    return rank ? rank->team->num_ranks() : openmp.num_threads();
}

struct Replacement {
    const char *name;
    void *ours;
    void **theirs;
};

const Replacement REPLACEMENTS[] = {
    {"GOMP_parallel", reinterpret_cast<void *>(parallel),
     reinterpret_cast<void **>(&openmp.parallel)},
    {"GOMP_barrier", reinterpret_cast<void *>(barrier), reinterpret_cast<void **>(&openmp.barrier)},
    {"GOMP_single_start", reinterpret_cast<void *>(single_start),
     reinterpret_cast<void **>(&openmp.single_start)},
    {"omp_get_thread_num", reinterpret_cast<void *>(thread_number),
     reinterpret_cast<void **>(&openmp.thread_number)},
    {"omp_get_num_threads", reinterpret_cast<void *>(num_threads),
     reinterpret_cast<void **>(&openmp.num_threads)},
};
constexpr int NUM_REPLACEMENTS = sizeof REPLACEMENTS / sizeof *REPLACEMENTS;

const Replacement *replacement_of(const char *name) {
    for (const Replacement &known : REPLACEMENTS)
        if (!std::strcmp(known.name, name)) return &known;
    return nullptr;
}

// The imports of a loaded library: its tables of addresses, which the loader filled.
struct Imports {
    ElfW(Addr) base;
    const ElfW(Sym) *symbols = nullptr;
    const char *names = nullptr;
    const ElfW(Rela) *tables[2] = {};
    size_t counts[2] = {};

    explicit Imports(const dl_phdr_info &library) : base(library.dlpi_addr) {
        for (int i = 0; i < library.dlpi_phnum; ++i) {
            if (library.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
            auto *entry = reinterpret_cast<const ElfW(Dyn) *>(base + library.dlpi_phdr[i].p_vaddr);
            for (; entry->d_tag != DT_NULL; ++entry) note(*entry);
        }
    }

    void note(const ElfW(Dyn) &entry) {
        const auto address = entry.d_un.d_ptr;
        switch (entry.d_tag) {
            case DT_SYMTAB: symbols = reinterpret_cast<const ElfW(Sym) *>(address); break;
            case DT_STRTAB: names = reinterpret_cast<const char *>(address); break;
            case DT_JMPREL: tables[0] = reinterpret_cast<const ElfW(Rela) *>(address); break;
            case DT_RELA: tables[1] = reinterpret_cast<const ElfW(Rela) *>(address); break;
            case DT_PLTRELSZ: counts[0] = entry.d_un.d_val / sizeof(ElfW(Rela)); break;
            case DT_RELASZ: counts[1] = entry.d_un.d_val / sizeof(ElfW(Rela)); break;
            default: break;
        }
    }

    // Call `visit(name, place)` for every imported symbol and the place of its address.
    template <typename Visit>
    void each(Visit visit) const {
        for (int table = 0; table < 2; ++table) {
            for (size_t i = 0; tables[table] && i < counts[table]; ++i) {
                const ElfW(Rela) &rela = tables[table][i];
                const size_t symbol = ELF64_R_SYM(rela.r_info);
                if (symbol)
                    visit(names + symbols[symbol].st_name,
                          reinterpret_cast<void **>(base + rela.r_offset));
            }
        }
    }
};

// Returns where the library that holds `address` begins; 0 if none holds it.
ElfW(Addr) base_of(void *address) {
    Dl_info found;
    return dladdr(address, &found) ? reinterpret_cast<ElfW(Addr)>(found.dli_fbase) : 0;
}

// ggml's tables for quantizing are made in regions of their own, never within a pass of ours. Where all
// of llama.cpp is one library, these functions are imports of it too.
const char *const OF_TABLES[] = {"GOMP_atomic_start", "GOMP_atomic_end", "GOMP_loop_end",
                                 "GOMP_loop_nonmonotonic_dynamic_start",
                                 "GOMP_loop_nonmonotonic_dynamic_next"};

// Whether a region that uses this function cannot be computed by a team of ours.
bool is_unknown(const char *name) {
    for (const char *known : OF_TABLES)
        if (!std::strcmp(known, name)) return false;
    return !std::strncmp(name, "GOMP_", 5) || !std::strncmp(name, "omp_", 4) ||
           !std::strncmp(name, "__kmpc_", 7);
}

// Make the page writable, because the loader may have made it read-only. It stays writable, because
// other tables on it may need to be.
bool replace(void **place, void *address) {
    const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t page = reinterpret_cast<uintptr_t>(place) & ~(page_bytes - 1);
    if (mprotect(reinterpret_cast<void *>(page), page_bytes, PROT_READ | PROT_WRITE)) return false;
    *place = address;
    return true;
}

struct Search {
    ElfW(Addr) base;
    int num_replaced;
};

int take_over(dl_phdr_info *library, size_t, void *given) {
    auto &search = *static_cast<Search *>(given);
    if (library->dlpi_addr != search.base) return 0;
    const Imports imports(*library);
    if (!imports.symbols || !imports.names) return 1;
    int num_known = 0, num_unknown = 0;
    imports.each([&](const char *name, void **place) {
        if (const Replacement *known = replacement_of(name)) {
            if (*place != known->ours) *known->theirs = *place;
            // An address inside the library belongs to the loader, which looks the function up at
            // the first call and would undo our change.
            num_known += base_of(*place) != search.base;
        } else if (is_unknown(name)) {
            ++num_unknown;
        }
    });
    if (num_unknown || num_known != NUM_REPLACEMENTS) return 1;
    imports.each([&](const char *name, void **place) {
        if (const Replacement *known = replacement_of(name))
            search.num_replaced += replace(place, known->ours);
    });
    return 1;
}

}  // namespace

int take_over_openmp(void *function) {
    Search search{base_of(function), 0};
    if (!Fiber::SUPPORTED || !search.base) return 0;
    dl_iterate_phdr(take_over, &search);
    return search.num_replaced;
}

}  // namespace haversack
