#pragma once
// Assertions: on in every build, for our own bugs only. What a peer, a file or a person says is never checked
// with this.

namespace rbt {

/// Prints `what` with file and line to standard error and aborts.
[[noreturn]] void check_failed(const char* what, const char* file, int line) noexcept;

/// Aborts unless `holds`: the process itself is wrong and must not go on.
constexpr void check(bool holds, const char* what, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) noexcept {
  if (!holds) [[unlikely]]
    check_failed(what, file, line);
}

}  // namespace rbt
