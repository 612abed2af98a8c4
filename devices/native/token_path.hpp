// A single token's way through the experts: llama.cpp's evaluation callback, the books, the reads
// and the late products. The same steps as offload/seam.py and offload/store.py, which take over
// for batches; devices/_native/own.py declares the structures.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "readers.hpp"
#include "table.hpp"

namespace haversack {

// struct ggml_tensor of the one build of llama.cpp that is accepted.
struct Tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];
};
static_assert(sizeof(Tensor) == 336, "another layout than llama.cpp's");

constexpr int MAX_MATRICES = 4;

struct Matrix {
    uint8_t *rooms;  // of slot 0; one every `stride` bytes
    int64_t stride, rest;
    int64_t offset, num_bytes;  // of expert 0 in the file, and of every expert
    int32_t file, kind;
};

struct Layer {
    int32_t number, row, table, num_matrices;
    Matrix matrices[MAX_MATRICES];
};

// A router that chooses those of the highest scores: `weight` (experts, inputs) times its input,
// and `bias` (experts,) or null added.
struct Router {
    const float *weight, *bias;
    int32_t num_experts, num_inputs, num_used;
};

// Products of single rows that llama.cpp computes in one graph: see devices/token_products.py.
struct ProductTensors {
    Tensor *weight, *row, *out;
};

// Answers of Python, which keeps any exception: false, null or less than 0 then.
struct Python {
    bool (*on_node)(Tensor *node, bool ask);   // a batch's node
    bool (*on_choice)(Tensor *node);           // somebody watches: told before it counts
    int32_t (*foresee)(int32_t layer);         // may read ahead
    bool (*should_stop)();
    void *(*make_graph)(int32_t kind, int32_t count, ProductTensors *tensors);
};

// See cache/odds.py: `chances` (depth, ranks), `quiet` (layers,).
struct Odds {
    double *chances;
    int64_t *quiet;
    int32_t depth, num_ranks;
    double least_chance, memory;
    int64_t quiet_tokens;

    bool are_worth(int32_t ahead, int32_t rank) const {
        return chances[(ahead - 1) * num_ranks + rank] >= least_chance;
    }
    void note(int32_t ahead, int32_t rank, bool right) {
        double &chance = chances[(ahead - 1) * num_ranks + rank];
        chance = chance + (right - chance) / memory;
    }
    bool may_miss(int32_t layer) const { return quiet[layer] < quiet_tokens; }
    void note_token(int32_t layer, bool missed) { quiet[layer] = missed ? 0 : quiet[layer] + 1; }
};

// What libggml is asked for.
struct Ggml {
    int32_t (*graph_compute)(void *backend, void *graph);
    void *backend;
    int32_t op_none, op_mul_mat_id, op_mul_mat;
    Tensor *slot_ids;  // stands in for a router's choice; its data has room for `max_used`
    int32_t max_used;
};

enum Failure : int32_t {
    NO_FAILURE = 0, PYTHON_FAILED, READ_FAILED, STOPPED, OTHER_CHOICE, PRODUCT_FAILED, BOOKS_WRONG,
};

enum Foresight : int32_t { NO_FORESIGHT = 0, BY_PYTHON, BY_ROUTERS };

// What Python sees and sets between passes.
struct TokenState {
    int32_t watched;   // ask `on_choice` of every choice
    int32_t foresees;  // how: see Foresight
    int32_t by_python; // leave tokens to Python as well
    int32_t num_seen;  // products of the graph that runs
    int32_t failure;
    Tensor *choice;    // the latest
    double began_s;    // when the first router of the graph had chosen
    Tensor *failed_node;
    Read *failed_read;  // gone by now: a name. The next fields were its own
    int64_t failed_offset, failed_need, failed_got;
    int32_t failed_file, failed_error;
    int64_t hits, misses, guessed, guessed_right, foreseeable, needed;
    double own_s;      // our own steps, without waiting and without products
    double product_s;  // late experts' products
};

class TokenPath {
  public:
    TokenPath(Ggml ggml, Python python, Odds odds, Readers *readers);

    void add_table(const Table &table) { tables_.push_back(table); }
    void add_layer(const Layer &layer);
    void add_router(int32_t layer, const Router &router) { routers_[layer] = router; }
    void add_product(Tensor *weight, int32_t layer, int32_t index) {
        products_[weight] = {layer, index};
    }

    bool on_node(Tensor *node, bool ask);
    // Read ahead those of `experts` without a slot that are worth it: how many are. Slots for a token
    // are left. `ahead`: by how many layers.
    int32_t read_ahead(int32_t layer, const int32_t *experts, int32_t count, int32_t ahead);
    void release();
    // Let go of all guesses; returns when none is under way.
    void withdraw();
    // After a failure, when no read is under way any more: forget all leases and guesses.
    void forget();

    TokenState state{};

  private:
    struct Guess {
        int32_t expert, slot;
        bool withdrawn;
        int32_t num_reads;
        Read reads[MAX_MATRICES];
        bool done() const;
        bool came() const;
        bool failed() const;
        std::vector<Read *> all();
    };
    struct Foreseen {  // an expert that had no slot when it was said to be likely
        int32_t expert, ahead, rank;
    };
    struct Late {  // an expert of the lease that had not come when it began
        int32_t position;
        Read own[MAX_MATRICES];
        Read *reads[MAX_MATRICES];
    };

    bool fail(Failure why, Tensor *node = nullptr);
    bool fail_read(Read *read);
    bool choose(Tensor *node);
    bool bring(int32_t layer);
    bool foresee(int32_t layer, int32_t depth);
    bool any_may_miss(int32_t layer) const;
    void foresee_by_routers(int32_t layer, int32_t depth);
    bool lease(int32_t layer);
    void start_reads(const Layer &layer);
    void start_guesses(int32_t layer, const std::vector<int32_t> &experts,
                       const std::vector<int32_t> &slots);
    std::list<Guess> settle_guesses(int32_t layer);
    void settle_odds(int32_t layer);
    void let_go(Table &table, Guess &guess);
    bool prepare(Tensor *node, int32_t layer, int32_t index);
    bool compute(Tensor *node, int32_t layer, int32_t index);
    bool multiply(Tensor *node, const Matrix &matrix, const std::vector<int32_t> &positions);
    void place(Read &read, const Matrix &matrix, int32_t expert, int32_t slot, bool ahead);

    struct Graph {
        void *graph;
        std::vector<ProductTensors> tensors;
    };

    const Ggml ggml_;
    const Python python_;
    Odds odds_;
    Readers *const readers_;
    std::vector<Table> tables_;
    std::vector<Layer> layers_;
    std::vector<bool> seen_;  // whether Python's `foresee` was asked of a layer
    std::vector<Router> routers_;  // by layer; without weight where unknown
    std::vector<std::list<Guess>> guesses_;
    std::vector<std::vector<bool>> absent_;  // by foreseen layer: experts without a slot then
    std::vector<std::vector<Foreseen>> foreseen_;  // by layer
    std::unordered_map<Tensor *, std::pair<int32_t, int32_t>> products_;
    std::unordered_map<int64_t, Graph> graphs_;

    bool batch_ = false;   // the latest choice is Python's
    int32_t leased_ = -1;  // layer of the lease
    std::vector<int32_t> experts_, slots_;
    std::list<Late> late_;
    std::list<Guess> coming_;  // guesses that the lease waits for
};

}  // namespace haversack
