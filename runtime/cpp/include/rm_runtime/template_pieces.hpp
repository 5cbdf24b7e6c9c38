// A chat template as rm-export compiled it: what stands before, around and after the contents of messages.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "text.hpp"

namespace rm_runtime {

struct Message {
    std::string role;
    std::string content;
};

/// A conversation, oldest message first.
using Messages = std::vector<Message>;

/// What is written before the content of a message with `role` that follows one with role `after` (none: the first).
struct Turn {
    std::optional<std::string> after;
    std::string role;
    std::string text;
    std::optional<bool> last;  ///< only where it is, or is not, the last message
    std::optional<std::string> refused;
};

/// The manifest's "pieces". Source: rm_runtime.template_pieces.
struct TemplatePieces {
    std::vector<Turn> turns;
    std::map<std::string, bool> strips;     ///< role -> white space is taken off both ends of the content
    std::map<std::string, std::string> end; ///< role of the last message -> what follows its content
    bool by_place = false;                  ///< roles are "even" and "odd", whatever messages call themselves
    bool skips_empty_last = false;

    /// The template's text. Throws Error (prompt) for roles in an order that it refuses or that the pieces do not know.
    [[nodiscard]] std::string render(const Messages& messages) const {
        std::string rendered;
        std::optional<std::string> before;
        std::optional<std::string> role;
        for (std::size_t place = 0; place < messages.size(); ++place) {
            before = role;
            role = by_place ? (place % 2 == 0 ? "even" : "odd") : messages[place].role;
            const bool last = place + 1 == messages.size();
            const Turn* const turn = turn_of(before, *role, last);
            if (turn != nullptr && turn->refused) throw Error(ErrorKind::prompt, *turn->refused);
            const auto strip = strips.find(*role);
            if (turn == nullptr || strip == strips.end() || (last && end.count(*role) == 0)) {
                const std::string follows = before ? "follows " + text::quoted(*before) : "begins the chat";
                throw Error(ErrorKind::prompt, "message " + std::to_string(place) + " has the role " +
                                                   text::quoted(*role) + " and " + follows +
                                                   ", which the pieces of the chat template do not know; send rendered text");
            }
            std::string_view content = messages[place].content;
            if (strip->second) content = text::stripped(content, text::is_python_space);
            if (!(skips_empty_last && last && content.empty())) rendered += turn->text;
            rendered += content;
        }
        return role ? rendered + end.at(*role) : rendered;
    }

private:
    [[nodiscard]] const Turn* turn_of(const std::optional<std::string>& after, const std::string& role, bool last) const {
        for (const Turn& turn : turns) {
            if (turn.after == after && turn.role == role && turn.last.value_or(last) == last) return &turn;
        }
        return nullptr;
    }
};

}  // namespace rm_runtime
