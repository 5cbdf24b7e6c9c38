// Byte-pair encoding: word -> ids, by merges in the order of their rank.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fields.hpp"
#include "tokenizer.hpp"

namespace rm_runtime {

class Bpe {
public:
    /// From the "model" of a tokenizer.json.
    explicit Bpe(const Json& model) {
        for (const char* const name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
            const bool unset = !model.contains(name) || model[name].is_null() || model[name] == "" || model[name] == 0.0;
            if (!unset) refuse_component("BPE option", name);
        }
        fuses_unknown_ = flag_of(model, "fuse_unk");
        ignores_merges_ = flag_of(model, "ignore_merges");
        const Json& vocabulary = field_of(model, "vocab");
        if (!vocabulary.is_object()) refuse_tokenizer("vocab is " + json_type(vocabulary) + ", not an object");
        ids_.reserve(vocabulary.size());
        for (const auto& [piece, id] : vocabulary.items()) ids_.emplace(piece, id_of(id));
        if (model.contains("unk_token") && !model["unk_token"].is_null()) {
            unknown_ = required(string_of(model, "unk_token"));
        }
        if (flag_of(model, "byte_fallback")) read_bytes();
        read_merges(field_of(model, "merges"));
    }

    [[nodiscard]] std::optional<std::int64_t> id(std::string_view piece) const {
        const auto found = ids_.find(std::string(piece));
        return found == ids_.end() ? std::nullopt : std::optional(found->second);
    }

    [[nodiscard]] std::size_t size() const { return ids_.size(); }

    /// Appends the ids of a word.
    void encode(const std::string& word, Ids& ids) const {
        if (ignores_merges_) {
            if (const auto whole = id(word)) return ids.push_back(*whole);
        }
        std::vector<Symbol> symbols = letters(word);
        merge(symbols);
        for (const Symbol& symbol : symbols) {
            if (symbol.id >= 0) ids.push_back(symbol.id);
        }
    }

private:
    /// A piece of a word in a linked list; id -1: it became part of the piece before it.
    struct Symbol {
        std::int64_t id;
        std::size_t before;
        std::size_t after;
    };
    struct Merge {
        std::uint32_t rank;
        std::int64_t id;
    };
    struct Candidate {
        Merge merge;
        std::size_t place;

        /// The queue gives the largest first: the lowest rank, of equal ranks the leftmost.
        bool operator<(const Candidate& other) const {
            return merge.rank != other.merge.rank ? merge.rank > other.merge.rank : place > other.place;
        }
    };
    static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

    std::unordered_map<std::string, std::int64_t> ids_;
    std::unordered_map<std::uint64_t, Merge> merges_;
    std::vector<std::optional<std::int64_t>> bytes_;
    std::optional<std::int64_t> unknown_;
    bool fuses_unknown_ = false;
    bool ignores_merges_ = false;

    static std::uint64_t pair_of(std::int64_t left, std::int64_t right) {
        return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
    }

    std::int64_t required(std::string_view piece) const {
        const auto found = id(piece);
        if (!found) refuse_tokenizer("its vocabulary lacks " + text::quoted(piece));
        return *found;
    }

    void read_bytes() {
        const char* const digits = "0123456789ABCDEF";
        for (std::size_t byte = 0; byte < 256; ++byte) {
            bytes_.push_back(id(std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">"));
        }
    }

    void read_merges(const Json& merges) {
        if (!merges.is_array()) refuse_tokenizer("merges is " + json_type(merges) + ", not an array");
        merges_.reserve(merges.size());
        std::uint32_t rank = 0;
        for (const Json& merge : merges) {
            std::string left;
            std::string right;
            if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
                left = merge[0].get<std::string>();
                right = merge[1].get<std::string>();
            } else if (merge.is_string()) {  // the older form, "left right"
                const auto both = merge.get<std::string>();
                const std::size_t space = both.find(' ');
                if (space == std::string::npos) refuse_tokenizer("the merge " + text::quoted(both) + " is no pair");
                left = both.substr(0, space);
                right = both.substr(space + 1);
            } else {
                refuse_tokenizer("a merge is " + json_type(merge) + ", not a pair of texts");
            }
            const std::uint64_t pair = pair_of(required(left), required(right));
            merges_.insert_or_assign(pair, Merge{rank++, required(left + right)});
        }
    }

    /// The word's letters: known ones, bytes of unknown ones, or what stands for the unknown.
    [[nodiscard]] std::vector<Symbol> letters(const std::string& word) const {
        std::vector<Symbol> symbols;
        const auto add = [&symbols](std::int64_t id) {
            symbols.push_back({id, symbols.empty() ? none : symbols.size() - 1, symbols.size() + 1});
        };
        bool unknown = false;  // one is waiting: it may become one with the next
        for (std::size_t place = 0; place < word.size();) {
            const std::string letter = word.substr(place, text::width_at(word, place));
            place += letter.size();
            if (const auto known = id(letter)) {
                if (unknown) add(*unknown_);
                unknown = false;
                add(*known);
            } else if (const auto of_bytes = byte_ids(letter)) {
                for (const std::int64_t byte : *of_bytes) add(byte);
            } else if (unknown_) {
                if (unknown && !fuses_unknown_) add(*unknown_);
                unknown = true;
            }
        }
        if (unknown) add(*unknown_);
        if (!symbols.empty()) symbols.back().after = none;
        return symbols;
    }

    [[nodiscard]] std::optional<Ids> byte_ids(const std::string& letter) const {
        if (bytes_.empty()) return std::nullopt;
        Ids ids;
        for (const char character : letter) {
            const auto& id = bytes_[static_cast<unsigned char>(character)];
            if (!id) return std::nullopt;
            ids.push_back(*id);
        }
        return ids;
    }

    void merge(std::vector<Symbol>& symbols) const {
        std::priority_queue<Candidate> queue;
        const auto consider = [&](std::size_t place) {
            const auto found = merges_.find(pair_of(symbols[place].id, symbols[symbols[place].after].id));
            if (found != merges_.end()) queue.push({found->second, place});
        };
        for (std::size_t place = 0; place + 1 < symbols.size(); ++place) consider(place);
        while (!queue.empty()) {
            const Candidate best = queue.top();
            queue.pop();
            Symbol& left = symbols[best.place];
            if (left.id < 0 || left.after == none) continue;
            Symbol& right = symbols[left.after];
            const auto still = merges_.find(pair_of(left.id, right.id));
            if (still == merges_.end() || still->second.id != best.merge.id) continue;
            left.id = best.merge.id;
            left.after = right.after;
            right.id = -1;
            if (left.after != none) symbols[left.after].before = best.place;
            if (left.before != none) consider(left.before);
            if (left.after != none) consider(best.place);
        }
    }
};

}  // namespace rm_runtime
