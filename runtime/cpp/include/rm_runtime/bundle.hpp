// Opening a bundle: nothing in it is used before its manifest, its paths and its sizes have been checked.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "manifest.hpp"

namespace rm_runtime {

inline constexpr const char* manifest_name = "bundle.json";
inline constexpr const char* tokenizer_name = "tokenizer.json";
inline constexpr std::uint64_t largest_manifest = std::uint64_t{16} * 1024 * 1024;

/// Hex sha256 of a file, read in pieces.
[[nodiscard]] inline std::string sha256_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
    if (!file || !context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
        throw Error(ErrorKind::bundle, path.string() + " cannot be read");
    }
    std::vector<char> piece(std::size_t{4} << 20);
    while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
        EVP_DigestUpdate(context.get(), piece.data(), static_cast<std::size_t>(file.gcount()));
    }
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    EVP_DigestFinal_ex(context.get(), digest.data(), &size);
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
        hex += "0123456789abcdef"[digest[i] >> 4];
        hex += "0123456789abcdef"[digest[i] & 15];
    }
    return hex;
}

/// An opened bundle folder whose manifest, paths and sizes are as they should be.
struct Bundle {
    std::filesystem::path path;
    Manifest manifest;

    /// verify: also compare every file's sha256, which reads the whole bundle. Throws Error (bundle), in one line that
    /// says what is wrong and how to mend it.
    [[nodiscard]] static Bundle open(const std::filesystem::path& folder, bool verify = false) {
        try {
            return checked(folder, verify);
        } catch (const std::filesystem::filesystem_error& error) {  // no permission, an unreadable disk
            fail(folder, "cannot be read: " + error.code().message());
        }
    }

    [[nodiscard]] std::string tokenizer_json() const { return content_of(path / tokenizer_name); }

private:
    [[nodiscard]] static Bundle checked(const std::filesystem::path& folder, bool verify) {
        const std::filesystem::path manifest_path = folder / manifest_name;
        if (!std::filesystem::is_directory(folder)) {
            fail(folder, "is not a folder; pass the folder that rm-export wrote");
        }
        if (std::filesystem::symlink_status(manifest_path).type() == std::filesystem::file_type::not_found) {
            fail(folder, std::string("holds no ") + manifest_name + ", so it is not a bundle; export one with rm-export");
        }
        if (regular_size(folder, manifest_name) > largest_manifest) {
            fail(manifest_path, "is larger than " + std::to_string(largest_manifest) +
                                    " bytes, no manifest is; export the bundle again");
        }
        Bundle bundle{folder, Manifest::from_json(content_of(manifest_path), manifest_path.string())};
        std::vector<std::string> needed = {tokenizer_name};
        for (const auto& [role, name] : bundle.manifest.graphs) needed.push_back(name);
        for (const std::string& name : needed) {
            if (bundle.manifest.files.count(name) == 0) {
                fail(manifest_path, "does not list its own " + name + "; export the bundle again");
            }
        }
        for (const auto& [name, record] : bundle.manifest.files) {
            const std::uint64_t size = regular_size(folder, name);
            if (size != record.size) {
                fail(folder / name, "has " + std::to_string(size) + " bytes, its manifest says " +
                                        std::to_string(record.size) + "; copy the bundle again, or export it again");
            }
            if (verify && sha256_of(folder / name) != record.sha256) {
                fail(folder / name, "does not match its sha256; copy the bundle again, or export it again");
            }
        }
        return bundle;
    }

    [[noreturn]] static void fail(const std::filesystem::path& path, const std::string& why) {
        throw Error(ErrorKind::bundle, text::one_line(path.string() + " " + why));
    }

    static std::string content_of(const std::filesystem::path& path) {
        std::ifstream file(path, std::ios::binary);
        std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        if (!file) fail(path, "cannot be read");
        return content;
    }

    /// Size of a regular file below the bundle; an error if it is missing, or it or a folder above it is a link.
    static std::uint64_t regular_size(const std::filesystem::path& folder, const std::string& name) {
        std::filesystem::path step = folder;
        std::filesystem::file_type type = std::filesystem::file_type::none;
        for (const std::filesystem::path& part : std::filesystem::path(name)) {
            step /= part;
            std::error_code error;
            type = std::filesystem::symlink_status(step, error).type();
            if (type == std::filesystem::file_type::symlink) {
                fail(step, "is a symbolic link; a bundle holds plain files only, copy it with cp -L");
            }
        }
        if (type == std::filesystem::file_type::not_found) {
            fail(step, "is missing; copy the whole bundle again, or export it again");
        }
        if (type != std::filesystem::file_type::regular) fail(step, "is not a plain file; a bundle holds plain files only");
        return std::filesystem::file_size(step);
    }
};

}  // namespace rm_runtime
