// A C++ container as llama.cpp returns it. On Linux it is compiled with libstdc++, and our library
// perhaps with another standard library (zig's), so the layout stands here. Elsewhere both use the
// system's.
#pragma once

#include <cstddef>
#include <cstdint>
#ifndef __linux__
#include <map>
#endif

namespace haversack::theirs {

#ifdef __linux__

// std::map: a tree, whose nodes belong to it.
template <class Key, class Value> class Map {
  public:
    Map(const Map &) = delete;
    Map &operator=(const Map &) = delete;
    ~Map() { erase(head_.parent); }

    // Call `visit(key, value)` for each pair, in the order of the keys.
    template <class Visit> void each(Visit visit) const { each_below(head_.parent, visit); }

  private:
    struct Node;
    struct Links {
        int32_t color;
        Node *parent, *left, *right;
    };
    struct Node {
        Links links;
        Key key;
        Value value;
    };

    template <class Visit> static void each_below(const Node *node, Visit &visit) {
        if (node == nullptr) return;
        each_below(node->links.left, visit);
        visit(node->key, node->value);
        each_below(node->links.right, visit);
    }
    static void erase(Node *node) {
        if (node == nullptr) return;
        erase(node->links.left);
        erase(node->links.right);
        ::operator delete(node);
    }

    char comparison_;  // an object without members
    Links head_;       // its parent is the root
    size_t num_pairs_;
};

#else

template <class Key, class Value> class Map {
  public:
    template <class Visit> void each(Visit visit) const {
        for (const auto &[key, value] : pairs_) visit(key, value);
    }

  private:
    std::map<Key, Value> pairs_;
};

#endif

}  // namespace haversack::theirs
