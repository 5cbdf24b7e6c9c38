// Reads manifests, for tests: one a line on stdin > "read" or why it is refused, one a line.
#include <iostream>
#include <string>

#include "rm_runtime/manifest.hpp"

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        try {
            (void)rm_runtime::Manifest::from_json(line, "bundle.json");
            std::cout << "read\n";
        } catch (const rm_runtime::Error& error) {
            std::cout << error.what() << '\n';
        }
    }
    return 0;
}
