// Special-token text typed by a user: found, refused, or encoded as plain text. Source: rm_runtime.special_text.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text.hpp"
#include "tokenizer/bundle_tokenizer.hpp"
#include "tokenizer/normalizers.hpp"
#include "tokenizer/prefix_index.hpp"

namespace rm_runtime {

/// Texts of users with marks in them that break control tokens, and what takes the marks out again.
struct MaskedTexts {
    std::vector<std::string> texts;
    std::vector<std::pair<std::string, std::string>> marks;  ///< mark -> what it stands for

    [[nodiscard]] std::string restored(std::string text) const {
        for (const auto& [mark, meant] : marks) text = text::replaced(text, mark, meant);
        return text;
    }
};

/// The tokens that structure a prompt, which a user's text should not be able to write: those marked special, and those
/// whose text occurs in what writes the prompt. Encodes texts in which users typed them as plain text, too: their marks
/// are gone when a tokenizer reads the text that has these tokens under other names, and the template's tokens with them.
class ControlText {
public:
    /// written_by: the template's source and variables, PairRM's prefixes.
    ControlText(std::shared_ptr<const BundleTokenizer> tokenizer, std::vector<std::string> written_by)
        : tokenizer_(std::move(tokenizer)), written_by_(std::move(written_by)) {
        std::vector<PrefixIndex::Entry> entries;
        for (const AddedToken& token : tokenizer_->tokens()) {
            const bool blank = text::stripped(token.content, text::is_python_space).empty();
            const bool written = std::any_of(written_by_.begin(), written_by_.end(), [&](const std::string& source) {
                return source.find(token.content) != std::string::npos;
            });
            if (blank || !(token.special || written)) continue;
            entries.emplace_back(token.content, static_cast<std::int64_t>(tokens_.size()));
            tokens_.push_back(token);
        }
        index_ = std::make_unique<PrefixIndex>(std::move(entries));
        std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& one, const AddedToken& other) {
            return one.content.size() > other.content.size();
        });
        if (tokenizer_->normalizer().is_null()) return;
        normalizer_ = std::make_unique<Normalizer>(tokenizer_->normalizer());
        for (const AddedToken& token : tokens_) {
            if (token.normalized) forms_.emplace_back(normalizer_->apply(token.content), token.content);
        }
    }

    /// The first control token that `text` would be encoded with.
    [[nodiscard]] std::optional<std::string> find(std::string_view text) const {
        for (std::size_t place = 0; place < text.size(); ++place) {
            if (const std::size_t length = token_at(text, place)) return std::string(text.substr(place, length));
        }
        if (forms_.empty()) return std::nullopt;
        const std::string normal = normalizer_->apply(text);
        for (const auto& [form, token] : forms_) {
            if (normal.find(form) != std::string::npos) return token;
        }
        return std::nullopt;
    }

    /// `texts` with every control token broken by a mark that neither they nor what writes the prompt hold.
    [[nodiscard]] MaskedTexts mask(const std::vector<std::string>& texts) const {
        std::set<std::string> singles;
        for (const AddedToken& token : tokens_) {
            if (is_letter(token.content)) singles.insert(token.content);
        }
        std::vector<std::string> marks = free_marks(texts, 1 + singles.size());
        MaskedTexts masked;
        std::map<std::string, std::string> stand_ins;
        for (const std::string& single : singles) {
            stand_ins[single] = marks.back();
            masked.marks.emplace_back(marks.back(), single);
            marks.pop_back();
        }
        masked.marks.emplace_back(marks.front(), "");
        for (const std::string& text : texts) {
            std::string broken;
            for (std::size_t place = 0; place < text.size();) {
                const std::string letter = text.substr(place, text::width_at(text, place));
                const auto stand_in = stand_ins.find(letter);
                if (token_at(text, place) == 0) {
                    broken += letter;
                } else {
                    broken += stand_in == stand_ins.end() ? letter + marks.front() : stand_in->second;
                }
                place += letter.size();
            }
            masked.texts.push_back(std::move(broken));
        }
        return masked;
    }

    /// Ids of a string rendered from masked texts: the control tokens in it are the template's.
    [[nodiscard]] Ids encode_as_text(const std::string& rendered, const MaskedTexts& masked) const {
        const Renamed& renamed = renamed_tokenizer();
        std::string named;
        for (std::size_t place = 0; place < rendered.size();) {
            if (rendered.compare(place, name_open.size(), name_open) == 0) {
                throw Error(ErrorKind::prompt, "the text holds private-use characters that special_text='text' reserves");
            }
            const std::size_t length = token_at(rendered, place);
            named += length == 0 ? rendered.substr(place, 1) : renamed.names.at(rendered.substr(place, length));
            place += std::max<std::size_t>(1, length);
        }
        return renamed.tokenizer->encode(masked.restored(named));
    }

private:
    struct Renamed {
        std::once_flag once;
        std::string failure;
        std::map<std::string, std::string> names;
        std::shared_ptr<const Tokenizer> tokenizer;
    };
    inline static const std::string name_open = "\xF4\x8F\xBF\xBC";   // U+10FFFC
    inline static const std::string name_close = "\xF4\x8F\xBF\xBD";  // U+10FFFD

    std::shared_ptr<const BundleTokenizer> tokenizer_;
    std::vector<std::string> written_by_;
    std::vector<AddedToken> tokens_;
    std::unique_ptr<PrefixIndex> index_;
    std::unique_ptr<Normalizer> normalizer_;
    std::vector<std::pair<std::string, std::string>> forms_;  ///< normalised text -> token
    std::unique_ptr<Renamed> renamed_ = std::make_unique<Renamed>();

    /// Bytes of the longest control token that begins there, or 0.
    [[nodiscard]] std::size_t token_at(std::string_view text, std::size_t place) const {
        std::size_t longest = 0;
        index_->for_each_prefix(text.substr(place), [&longest](std::size_t length, std::int64_t) { longest = length; });
        return longest;
    }

    [[nodiscard]] std::vector<std::string> free_marks(const std::vector<std::string>& texts, std::size_t count) const {
        std::vector<std::string> marks;
        const auto held_by = [](const std::vector<std::string>& sources, const std::string& mark) {
            return std::any_of(sources.begin(), sources.end(),
                               [&](const std::string& source) { return source.find(mark) != std::string::npos; });
        };
        for (char32_t code = 0xE000; code < 0xF900 && marks.size() < count; ++code) {
            std::string mark;
            text::append(mark, code);
            if (!held_by(texts, mark) && !held_by(written_by_, mark)) marks.push_back(mark);
        }
        if (marks.size() < count) {
            throw Error(ErrorKind::prompt, "the texts use every private-use character; special_text='text' needs one");
        }
        return marks;
    }

    /// Made on first use: it takes the memory of a second tokenizer.
    [[nodiscard]] const Renamed& renamed_tokenizer() const {
        std::call_once(renamed_->once, [this] {
            try {
                rename();
            } catch (const std::exception& error) {
                renamed_->failure = error.what();
            }
        });
        if (!renamed_->failure.empty()) throw Error(ErrorKind::prompt, renamed_->failure);
        return *renamed_;
    }

    void rename() const {
        std::map<std::string, std::string>& names = renamed_->names;
        Json document = tokenizer_->document();
        Json& model = document["model"];
        for (std::size_t i = 0; i < tokens_.size(); ++i) {
            const std::string& token = tokens_[i].content;
            if (is_letter(token) && model["vocab"].contains(token)) {  // it may be a byte or a letter of other words
                throw Error(ErrorKind::prompt,
                            "special_text='text' cannot rename the token " + text::quoted(token) + " of this tokenizer");
            }
            std::string name = name_open;
            text::append(name, static_cast<char32_t>(0xF0000 + i));
            names[token] = name + name_close;
        }
        const auto renamed = [&names](Json& text) {
            const auto found = text.is_string() ? names.find(text.get<std::string>()) : names.end();
            if (found != names.end()) text = found->second;
        };
        for (Json& token : document["added_tokens"]) renamed(token["content"]);
        if (model["vocab"].is_object()) {
            for (const auto& [token, name] : names) {
                if (!model["vocab"].contains(token)) continue;
                const Json id = model["vocab"][token];
                model["vocab"].erase(token);
                model["vocab"][name] = id;
            }
        } else {
            for (Json& piece : model["vocab"]) renamed(piece[0]);
        }
        if (model.contains("unk_token")) renamed(model["unk_token"]);
        if (model.contains("merges")) drop_merges(model["merges"], names);
        renamed_->tokenizer = tokenizer_->made_from(document);
    }

    static bool is_letter(const std::string& text) { return text.size() == text::width_at(text, 0); }

    /// A merge that would write a control token from plain text goes with its name.
    static void drop_merges(Json& merges, const std::map<std::string, std::string>& names) {
        Json kept = Json::array();
        for (Json& merge : merges) {
            std::string left;
            std::string right;
            if (merge.is_array()) {
                left = merge[0].get<std::string>();
                right = merge[1].get<std::string>();
            } else {
                const auto both = merge.get<std::string>();
                left = both.substr(0, both.find(' '));
                right = both.substr(both.find(' ') + 1);
            }
            if (names.count(left) + names.count(right) + names.count(left + right) == 0) kept.push_back(std::move(merge));
        }
        merges = std::move(kept);
    }
};

}  // namespace rm_runtime
