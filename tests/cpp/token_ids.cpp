// Prints the ids of texts, for tests: token_ids tokenizer.json < JSON strings, one a line > arrays of ids, one a line.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "rm_runtime/tokenizer/json_tokenizer.hpp"

int main(int count, char** arguments) {
    if (count != 2) return 2;
    try {
        std::ifstream file(arguments[1], std::ios::binary);
        const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const rm_runtime::JsonTokenizer tokenizer(rm_runtime::parse_json(json));
        for (std::string line; std::getline(std::cin, line);) {
            std::cout << rm_runtime::Json(tokenizer.encode(rm_runtime::parse_json(line).get<std::string>())).dump() << '\n';
        }
    } catch (const rm_runtime::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
