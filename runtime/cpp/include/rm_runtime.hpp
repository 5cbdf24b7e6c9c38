// Score chats with an exported reward model: a bundle folder in, typed results out. docs/cpp.md
#pragma once

#include "rm_runtime/error.hpp"
#include "rm_runtime/json_lines.hpp"
#include "rm_runtime/load.hpp"
#include "rm_runtime/options.hpp"
#include "rm_runtime/results.hpp"
