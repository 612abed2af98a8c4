// A C++ container as llama.cpp returns it. On Linux it is compiled with libstdc++, on Windows with
// Microsoft's library, and ours perhaps with another one (zig's), so their layouts stand here.
// On macOS both use the system's.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef __APPLE__
#include <map>
#endif

namespace haversack::theirs {

#ifndef __APPLE__

// std::map: a tree, whose nodes belong to it.
template <class Key, class Value> class Map {
  public:
    Map(const Map &) = delete;
    Map &operator=(const Map &) = delete;
    ~Map() {
        erase(root());
        end();
    }

    // Call `visit(key, value)` for each pair, in the order of the keys.
    template <class Visit> void each(Visit visit) const { each_below(root(), visit); }

  private:
    struct Node;
#ifdef _WIN32
    struct Links {
        Node *left, *parent, *right;
        char color, is_head;  // the head stands in place of nodes that are not there
    };
#else
    struct Links {
        int32_t color;
        Node *parent, *left, *right;
    };
#endif
    struct Node {
        Links links;
        Key key;
        Value value;
    };

    template <class Visit> static void each_below(const Node *node, Visit &visit) {
        if (is_none(node)) return;
        each_below(node->links.left, visit);
        visit(node->key, node->value);
        each_below(node->links.right, visit);
    }
    static void erase(Node *node) {
        if (is_none(node)) return;
        erase(node->links.left);
        erase(node->links.right);
        ::operator delete(node);
    }

#ifdef _WIN32
    static bool is_none(const Node *node) { return node->links.is_head; }
    Node *root() const { return head_->links.parent; }
    void end() { ::operator delete(head_); }

    Node *head_;
#else
    static bool is_none(const Node *node) { return node == nullptr; }
    Node *root() const { return head_.parent; }
    void end() {}

    char comparison_;  // an object without members
    Links head_;       // its parent is the root
#endif
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
